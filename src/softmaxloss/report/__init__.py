"""Reports: an evaluation or a comparison as one HTML file that opens offline."""

from softmaxloss.report.write import write_report

__all__ = ["write_report"]
