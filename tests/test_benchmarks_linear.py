"""Tests of the benchmark of linear layers."""

import dataclasses
import json
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import linear, linear_contenders
from benchmarks.dense import DisagreementError
from benchmarks.linear_contenders import LINEAR, LinearCase
from test_benchmarks import results, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc and /sys")

SMALL = LinearCase(60, 8, 500)


def test_it_runs(tmp_path):
    file = tmp_path / "linear.json"
    done = run("linear", "--quick", "--cases", "60x8x500", "--contenders", "pytorch-plain", "--json", file)
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured["contenders"] == ["numpy", "pytorch-plain"]
    plain, peaked = measured["cases"]
    assert plain["seconds"]["numpy"].keys() == {"product", "loss", "products", "grad"}
    assert peaked["seconds"]["numpy"].keys() == {"grad", "filtered"}
    (memory,) = measured["memory"]
    assert memory["growth_bytes"]["pytorch-plain"].keys() == {"loss", "grad"}
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks linear -->"
    assert sum(line.startswith("| 60 x 8 x 500 |") for line in lines) == 3


@pytest.mark.parametrize("name", [name for name in LINEAR if name not in ("numpy", "pytorch-compiled")])
def test_contenders_agree(name):
    if LINEAR[name].missing:
        pytest.skip(f"{name} is not installed")
    for case in (SMALL, dataclasses.replace(SMALL, peaked=True)):
        operations = LINEAR[name].load(case)
        ours = LINEAR["numpy"].load(case)["grad"]()
        for theirs, expected in zip(operations["grad"](), ours, strict=True):
            assert linear._apart(np.asarray(theirs), expected) < 1e-5
        assert linear._apart(np.asarray(operations["loss"]()), ours[0]) < 1e-5
        product, gradients = operations["product"](), operations["products"]()
        for theirs, expected in zip((product, *gradients), (gradients[0], *gradients), strict=True):
            np.testing.assert_array_equal(np.asarray(theirs), np.asarray(expected))
        if "filtered" in operations:
            assert linear._apart(np.asarray(operations["filtered"]()[1]), ours[1]) < 0.1


def test_an_answer_that_is_not_ours_is_an_error(monkeypatch):
    answers = {"numpy": [np.float64(2.0), np.ones(3)], "torch": [np.float64(2.0), np.ones(3) * 1.01]}
    monkeypatch.setattr(linear, "_ask", lambda name, pools, function: answers[name])
    with pytest.raises(DisagreementError, match=r"'torch': 0\.01"):
        linear._check(["numpy", "torch"], {})


def test_the_table_divides_the_right_way():
    seconds = {
        "numpy": {"product": 1.0, "loss": 1.1, "products": 3.0, "grad": 3.3},
        "torch": {"product": 2.0, "loss": 2.5, "products": 6.0, "grad": 9.0},
    }
    filtered = {"numpy": {"grad": 3.0, "filtered": 1.5}, "torch": {"grad": 3.0}}
    shared = {"title": "4 x 2 x 3", "busy": 0.0, "difference": 2e-6}
    measured = results({}) | {
        "command": "linear",
        "contenders": ["numpy", "torch"],
        "cases": [shared | {"peaked": False, "seconds": seconds}, shared | {"peaked": True, "seconds": filtered}],
        "memory": [
            {"title": "4 x 2 x 3", "logits_bytes": 2**22, "growth_bytes": {"numpy": {"loss": 2**20, "grad": 2**21}}}
        ],
    }
    lines = linear.table(measured).splitlines()
    assert "| 4 x 2 x 3 | 1 / 3 | 1.10 / 1.10 | 1.25 / 1.50 |" in lines
    assert "| 4 x 2 x 3 | 2.00 |" in lines
    assert "| 4 x 2 x 3 | 4 | 1 / 2 | - |" in lines


def test_logits_that_memory_does_not_hold_are_left_to_others():
    beyond = LinearCase(1 << 24, 8, 1 << 20)
    assert not LINEAR["pytorch-plain"].takes(beyond)
    assert LINEAR["numpy"].takes(beyond)
    assert linear_contenders._logits_if_they_fit(beyond).size == 0


def test_cases():
    assert LinearCase.parse("1024x768x32000") == LinearCase(1024, 768, 32000)
    with pytest.raises(ValueError, match="'10x3' is no case"):
        LinearCase.parse("10x3")
