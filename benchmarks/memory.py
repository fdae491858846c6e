"""Measures the memory of one call: by how much it raises the peak of a fresh process that holds its data."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.cases import Case
from benchmarks.contenders import EVERYONE
from benchmarks.worker import Worker


def measure(names: list[str], cases: list[Case]) -> list[dict[str, Any]]:
    """Measure every case; each result is a dictionary that JSON can hold."""
    return [_measure_case(names, case) for case in cases]


def _measure_case(names: list[str], case: Case) -> dict[str, Any]:
    print(f"{case} ...", file=sys.stderr)
    growth: dict[str, dict[str, int]] = {}
    for name in names:
        if not EVERYONE[name].takes(case):
            continue
        growth[name] = {}
        for operation in _operations(name):
            worker = Worker(name)
            try:
                growth[name][operation] = worker.memory(case, operation)
            finally:
                worker.close()
    return {
        "case": str(case),
        "title": case.title,
        "dtype": case.dtype,
        "logits_bytes": case.nbytes,
        "growth_bytes": growth,
    }


def _operations(name: str) -> list[str]:
    worker = Worker(name)
    try:
        return [operation for operation in worker.load(Case((1, 2)), 1) if operation != "copy"]
    finally:
        worker.close()
