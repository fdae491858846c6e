"""The benchmark of a path of Cs, on data that take no time."""

import pytest

pytest.importorskip("sklearn")

from benchmarks import path
from benchmarks.classifier_cases import CASES
from benchmarks.machine import facts


def test_a_path_beside_fits_that_begin_at_0():
    (case,) = path.measure(path.Effort((CASES["iris"],), repeats=1))
    passes = [fit["passes"] for fit in case["fits"]]
    assert len(passes) == 10
    assert min(passes) > 1
    assert 10 < case["path"]["passes"] < sum(passes)
    table = path.table({"path": [case], "machine": facts(), "left_out": {}})
    assert "| iris, 150 x 4, 3 classes |" in table


def test_a_fit_that_has_not_converged_is_no_measurement(monkeypatch):
    monkeypatch.setattr(path, "MOST_ITERATIONS", 1)
    with pytest.raises(RuntimeError, match="has not converged"):
        path.measure(path.QUICK)
