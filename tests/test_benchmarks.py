"""Tests of the benchmarks: they run with the peers at hand, check answers, and write what they measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import contenders, dense, tables, worker
from benchmarks.cases import Case

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

OURS = {"loss", "grad", "grad_in_place", "grad_new"}
PEERS = [name for name in contenders.CONTENDERS if name not in ("memcpy", "softmaxloss")]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def installed(names):
    return {name for name in names if not contenders.CONTENDERS[name].missing}


def test_dense_runs_with_the_peers_that_are_installed(tmp_path):
    done = run("dense", "--quick", "--cases", "33x10", "float64:7x300", "--json", tmp_path / "dense.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "dense.json").read_text())
    everyone = installed(contenders.CONTENDERS)
    assert results["left_out"].keys() == contenders.CONTENDERS.keys() - everyone
    assert results["machine"]["threads"] >= 1
    assert 0 <= results["machine"]["busy_before"] <= 1
    assert results["machine"]["instruction_set"]
    assert results["machine"]["versions"].keys() >= {"softmaxloss", "numpy"}
    assert [case["case"] for case in results["cases"]] == ["33x10", "float64:7x300"]
    for case in results["cases"]:
        assert case["seconds"].keys() == case["calls"].keys() == everyone
        for name, seconds in case["seconds"].items():
            expected = {"memcpy": {"copy"}, "softmaxloss": OURS}.get(name, {"loss", "grad"})
            assert seconds.keys() == expected
            assert all(value > 0 for value in seconds.values())
            assert all(case["calls"][name][operation] >= 1 for operation in expected)
            assert case["differences"][name].keys() == expected - {"copy"}
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks dense -->"
    assert lines[-1] == "<!-- end: python -m benchmarks dense -->"
    assert sum(line.startswith("| 33 x 10 |") for line in lines) == 2
    assert sum(line.startswith("| 7 x 300 float64 |") for line in lines) == 2


def test_memory_runs(tmp_path):
    done = run("memory", "--cases", "64x4096", "--contenders", "numpy", "--json", tmp_path / "memory.json")
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "memory.json").read_text())["cases"]
    growth = case["growth_bytes"]
    assert growth["softmaxloss"].keys() == OURS
    assert growth["numpy"].keys() == {"loss", "grad"}
    # NumPy makes arrays as large as the logits, which shows that the measurement sees them.
    assert growth["numpy"]["grad"] >= case["logits_bytes"] == 64 * 4096 * 4
    assert "| 64 x 4096 |" in done.stdout


@pytest.mark.parametrize("arguments", [["dense", "--cases", "10"], ["dense", "--contenders", "no"], []])
def test_usage_errors(arguments):
    assert run(*arguments).returncode == 2


def test_a_failing_contender_is_an_error_that_names_it():
    child = worker.Worker("numpy")
    try:
        child.load(Case(2, 3))
        with pytest.raises(worker.WorkerError, match=r"numpy: time failed(.|\n)*KeyError: 'no such operation'"):
            child.time("no such operation", 0)
        assert child.time("loss", 0)[1] == 1
    finally:
        child.close()


class Answers:
    """Stands for a worker whose gradient is off by so much, relatively."""

    def __init__(self, off=0.0):
        self.off = off

    def load(self, case):
        return ["grad"]

    def save(self, operation, folder):
        pass

    def compare(self, operation, folder):
        return self.off

    def time(self, operation, seconds):
        return 1e-3, 1


@pytest.mark.parametrize("off", [1e-3, float("inf"), float("nan")])
def test_wrong_answers_stop_the_benchmark(off):
    workers = {"softmaxloss": Answers(), "numpy": Answers(off)}
    with pytest.raises(dense.DisagreementError, match="numpy grad by"):
        dense._measure_case(workers, Case(2, 3), dense.QUICK)


@pytest.mark.parametrize("entry", [(0, 0), (3, 4)])
def test_compare_sees_a_single_entry(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(worker, "COMPARE_BYTES", 40)
    gradient = np.full((4, 5), 1e-6, np.float32)
    np.save(tmp_path / "loss.npy", np.float32(2.0))
    wrong = gradient.copy()
    wrong[entry] *= 1.5
    np.save(tmp_path / "gradient.npy", wrong)
    bench = worker._Bench("numpy")
    bench._operations = {"grad": contenders.Operation(lambda: (np.float32(2.0), gradient))}
    assert bench.compare("grad", tmp_path) == pytest.approx(1 / 3, rel=1e-5)
    bench._operations = {"grad": contenders.Operation(lambda: (np.float32(np.nan), wrong))}
    assert bench.compare("grad", tmp_path) == float("inf")


def test_missing_packages_are_left_out_with_their_reason(monkeypatch):
    found = contenders.importlib.util.find_spec
    monkeypatch.setattr(
        contenders.importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "optax") else found(name),
    )
    present, left_out = contenders.available(["memcpy", "softmaxloss", "pytorch", "jax", "numpy"])
    assert present == ["softmaxloss", "numpy"]
    assert left_out["jax"].endswith("optax not installed")
    assert left_out["pytorch"] == left_out["memcpy"] == "torch not installed"


def results(seconds, busy=0.0):
    machine = {
        "processor": "A processor",
        "threads": 2,
        "instruction_set": "avx2",
        "busy_before": busy,
        "python": "3.11.0",
        "versions": {"softmaxloss": "1.0"},
    }
    case = {"rows": 8, "classes": 3, "dtype": "float32", "seconds": seconds}
    case["differences"] = {name: {"grad": 1e-7} for name in seconds}
    return {"machine": machine, "left_out": {"jax": "optax not installed"}, "cases": [case]}


def test_table_divides_the_right_way():
    seconds = {
        "memcpy": {"copy": 2e-3},
        "softmaxloss": {"loss": 1e-3, "grad": 1.5e-3, "grad_in_place": 1.6e-3, "grad_new": 4e-3},
        "pytorch": {"loss": 5e-3, "grad": 30e-3},
    }
    lines = tables.dense(results(seconds)).splitlines()
    assert "| 8 x 3 | 2 ms | 0.50 / 0.75 | 0.80 | 2.00 | 2.50 / 15 |" in lines
    assert "| 8 x 3 | 5.00 / 20 |" in lines
    assert "Left out: JAX (optax not installed)." in lines
    assert not any("Other programs" in line for line in lines)
    assert "Other programs were using 60% of the processors" in tables.dense(results(seconds, busy=0.6))
    seconds.pop("memcpy")
    lines = tables.dense(results(seconds)).splitlines()
    assert "| 8 x 3 | - | 1 ms / 1.5 ms | 1.6 ms | 4 ms | 5 ms / 30 ms |" in lines


def test_slow_operations_join_fewer_rounds():
    calls = []

    class Slow(Answers):
        def time(self, operation, seconds):
            calls.append(operation)
            return 0.5, 1

    case = dense._measure_case({"softmaxloss": Slow()}, Case(2, 3), dense.Effort(10, 0.01, 60))
    assert case["rounds"] == 10
    assert len(calls) == case["calls"]["softmaxloss"]["grad"] == 2


@pytest.mark.parametrize("text", ["8x", "0x10", "int8:8x10", "8x10x3", "-1x10"])
def test_case_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="rows x classes"):
        Case.parse(text)


@pytest.mark.parametrize("text", ["8x10", "float64:8x10"])
def test_case_is_the_same_data_every_time(text):
    case = Case.parse(text)
    assert str(case) == text
    logits, labels = case.data()
    assert logits.shape == (8, 10)
    assert logits.nbytes == case.nbytes
    np.testing.assert_array_equal(logits, case.data()[0])
    np.testing.assert_array_equal(labels, case.data()[1])


@pytest.mark.parametrize("name", PEERS)
def test_contenders_agree_with_ours(name, tmp_path):
    if contenders.CONTENDERS[name].missing:
        pytest.skip(f"{name} is not installed")
    case = Case(37, 11)
    ours = worker._Bench("softmaxloss")
    ours.load(case)
    ours.save("grad", tmp_path)
    child = worker.Worker(name)
    try:
        for operation in child.load(case):
            assert child.compare(operation, tmp_path) < 1e-5
    finally:
        child.close()
