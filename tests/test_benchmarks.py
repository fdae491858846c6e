"""Tests of the benchmarks: they run with the peers at hand, check answers, and write what they measured.

The exact values themselves are tested against tests/exact.py, which is written on its own.
"""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import exact
import numpy as np
import pytest
from benchmarks import (
    accuracy,
    agreement,
    answers,
    cases,
    contenders,
    dense,
    operations,
    reference,
    rotation,
    tables,
    worker,
)
from benchmarks.cases import Case
from mpmath import mp, mpf

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc and /sys")

OURS = {"loss", "grad", "grad_in_place", "grad_new"}
PEERS = [name for name in contenders.CONTENDERS if name != "softmaxloss"]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def installed(names):
    return {name for name in names if not contenders.CONTENDERS[name].missing}


def test_dense_runs_with_the_peers_that_are_installed(tmp_path):
    names = ["float64:700x300", "2x3x4x5@1", "9x4+label_smoothing"]
    done = run("dense", "--quick", "--cases", *names, "--json", tmp_path / "dense.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "dense.json").read_text())
    everyone = installed(contenders.CONTENDERS)
    assert results["left_out"].keys() - {"memcpy"} == contenders.CONTENDERS.keys() - everyone
    assert results["machine"]["threads"] >= 1
    assert results["machine"]["instruction_set"]
    assert results["machine"]["last_level_cache_bytes"] > 0
    assert results["machine"]["versions"].keys() >= {"softmaxloss", "numpy"}
    assert [case["case"] for case in results["cases"]] == names
    for case in results["cases"]:
        assert 0 <= case["busy"] <= 1
        plain = "+" not in case["case"]
        assert case["seconds"].keys() == case["calls"].keys() == everyone - (set() if plain else {"scipy", "numpy"})
        assert (case["buffers"] > 1) == (case["logits_bytes"] > 1 << 20)
        for name, seconds in case["seconds"].items():
            expected = (
                OURS | ({"copy"} if "pytorch" in everyone else set()) if name == "softmaxloss" else {"loss", "grad"}
            )
            assert seconds.keys() == expected
            assert all(value > 0 for value in seconds.values())
            assert all(case["calls"][name][operation] >= 1 for operation in expected)
            assert case["differences"][name].keys() == expected - {"copy"}
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks dense -->"
    assert lines[-1] == "<!-- end: python -m benchmarks dense -->"
    for title in ("700 x 300 float64", "2 x 3 x 4 x 5 axis 1", "9 x 4 label smoothing"):
        assert sum(line.startswith(f"| {title} |") for line in lines) == 2


def test_accuracy_runs(tmp_path):
    names = sorted(installed(answers.ANSWERS))
    done = run("accuracy", "--classes", 2, 10, "--detail", "--json", tmp_path / "accuracy.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "accuracy.json").read_text())
    assert [kind["kind"] for kind in results["kinds"]] == list(accuracy.KINDS)
    for kind in results["kinds"]:
        assert sorted(kind["errors"]) == names
        assert [one["classes"] for one in kind["by_classes"]] == [2, 10]
        for of in ("loss", "gradient"):
            ours = kind["errors"]["softmaxloss"][of]
            assert 0 < ours["median"] <= ours["worst"] < 64  # (16 + D) units are promised, and D is below 48
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks accuracy -->"
    assert lines[-1] == "<!-- end: python -m benchmarks accuracy -->"
    assert sum(line.startswith("| confident |") for line in lines) == 2 + 2 * 2
    assert any("2^-24" in line and "1.7e7 is 100%" in line for line in lines)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["dense", "--cases", "10"],
        ["dense", "--contenders", "no"],
        ["accuracy", "--classes", "1"],
        ["accuracy", "--contenders", "numpy"],
        [],
    ],
)
def test_usage_errors(arguments):
    assert run(*arguments).returncode == 2


def test_a_failing_contender_is_an_error_that_names_it():
    child = worker.Worker("numpy")
    try:
        child.load(Case((2, 3)), 1)
        with pytest.raises(worker.WorkerError, match=r"numpy: time failed(.|\n)*KeyError: 'no such operation'"):
            child.time("no such operation", 0)
        assert child.time("loss", 0)[1] == 1
    finally:
        child.close()


class Answers:
    """Stands for a worker whose gradient is off by so much, relatively."""

    def __init__(self, off=0.0):
        self.off = off

    def load(self, case, buffers):
        return ["grad"]

    def drop(self):
        pass

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
        dense._measure_case(workers, Case((2, 3)), dense.QUICK, 1)


@pytest.mark.parametrize("entry", [(0, 0), (3, 4)])
def test_compare_sees_a_single_entry(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(worker, "COMPARE_BYTES", 40)
    gradient = np.full((4, 5), 1e-6, np.float32)
    np.save(tmp_path / "loss.npy", np.float32(2.0))
    wrong = gradient.copy()
    wrong[entry] *= 1.5
    np.save(tmp_path / "gradient.npy", wrong.view("V4"))
    bench = worker._Bench("numpy")
    bench._case = Case((4, 5))
    bench._operations = {"grad": operations.Operation(lambda: (np.float32(2.0), gradient))}
    assert bench.compare("grad", tmp_path) == pytest.approx(1 / 3, rel=1e-5)
    bench._operations = {"grad": operations.Operation(lambda: (np.float32(np.nan), wrong))}
    assert bench.compare("grad", tmp_path) == float("inf")


def test_missing_packages_are_left_out_with_their_reason(monkeypatch):
    found = contenders.importlib.util.find_spec
    monkeypatch.setattr(
        contenders.importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "optax") else found(name),
    )
    present, left_out = contenders.available(["softmaxloss", "pytorch", "jax", "numpy"])
    assert present == ["softmaxloss", "numpy"]
    assert left_out["jax"].endswith("optax not installed")
    assert left_out["pytorch"] == "torch not installed"


def results(seconds, busy=0.0, size=1 << 30, buffers=1):
    machine = {
        "processor": "A processor",
        "threads": 2,
        "instruction_set": "avx2",
        "last_level_cache_bytes": 1 << 25,
        "python": "3.11.0",
        "versions": {"softmaxloss": "1.0"},
    }
    case = {"title": "8 x 3", "dtype": "float32", "seconds": seconds, "logits_bytes": size, "buffers": buffers}
    case["busy"] = busy
    case["differences"] = {name: {"grad": 1e-7} for name in seconds}
    return {"machine": machine, "left_out": {"jax": "optax not installed"}, "cases": [case], "in_cache": False}


SECONDS = {
    "softmaxloss": {"copy": 2e-3, "loss": 1e-3, "grad": 1.5e-3, "grad_in_place": 1.6e-3, "grad_new": 4e-3},
    "pytorch": {"loss": 5e-3, "grad": 30e-3},
}


def test_table_divides_the_right_way():
    lines = tables.dense(results(SECONDS)).splitlines()
    assert "| 8 x 3 | 2 ms | 0.50 / 0.75 | 0.80 | 2.00 | 2.50 / 15 |" in lines
    assert "| 8 x 3 | 5.00 / 20 |" in lines
    assert "Left out: JAX (optax not installed)." in lines
    assert not any("Other programs" in line or "too little memory" in line for line in lines)
    assert "Other programs were using up to 60% of the processors" in tables.dense(results(SECONDS, busy=0.6))
    without = {"softmaxloss": {k: v for k, v in SECONDS["softmaxloss"].items() if k != "copy"}}
    lines = tables.dense(results(SECONDS | without)).splitlines()
    assert "| 8 x 3 | - | 1 ms / 1.5 ms | 1.6 ms | 4 ms | 5 ms / 30 ms |" in lines


def test_table_tells_small_calls_in_microseconds():
    lines = tables.dense(results(SECONDS, size=40)).splitlines()
    assert "| 8 x 3 | 1e+03 / 1.5e+03 | 1.6e+03 | 4e+03 | 5e+03 / 3e+04 |" in lines
    assert "| 8 x 3 | 5.00 / 20 |" in lines


def test_table_owns_up_to_too_few_buffers():
    assert "too little memory here for as many with 8 x 3" in tables.dense(results(SECONDS, size=1 << 25, buffers=3))
    assert "too little memory" not in tables.dense(results(SECONDS, size=1 << 25, buffers=8))


def test_slow_operations_join_fewer_rounds():
    calls = []

    class Slow(Answers):
        def time(self, operation, seconds):
            calls.append(operation)
            return 0.5, 1

    case = dense._measure_case({"softmaxloss": Slow()}, Case((2, 3)), dense.Effort(10, 0.01, 60), 1)
    assert case["rounds"] == 10
    assert len(calls) == case["calls"]["softmaxloss"]["grad"] == 2


@pytest.mark.parametrize("text", ["8x", "0x10", "int8:8x10", "8", "-1x10", "8x10@2", "8x10+hinge"])
def test_case_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="rows x classes"):
        Case.parse(text)


@pytest.mark.parametrize("text", ["8x10", "float64:8x10", "float16:2x3x4@1", "8x10+soft_labels", "8x10+class_weight"])
def test_case_is_the_same_data_every_time(text):
    case = Case.parse(text)
    assert str(case) == text
    data, again = case.data(), case.data()
    assert data.logits.shape == case.shape
    assert data.logits.nbytes == case.nbytes
    assert data.logits.dtype == case.numpy_dtype
    assert data.labels.shape == (case.shape if case.variant == "soft_labels" else case.rows_shape)
    np.testing.assert_array_equal(data.logits, again.logits)
    np.testing.assert_array_equal(data.labels, again.labels)
    for option, value in data.options.items():
        np.testing.assert_array_equal(value, again.options[option])


def test_the_last_axis_needs_no_name():
    assert Case.parse("8x10@1") == Case.parse("8x10")
    assert Case.parse("2x3x4@1").rows_shape == (2, 4)


EVERY_KIND = [
    "37x11",
    "float64:37x11",
    "float16:37x11",
    "bfloat16:37x11",
    "2x7x3x5@1",
    "3x5x7",
    *(f"37x11+{variant}" for variant in cases.VARIANTS),
]


@pytest.mark.parametrize("name", PEERS)
def test_contenders_agree_with_ours(name, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "gc", types.SimpleNamespace(collect=int))  # no memory is measured
    if contenders.CONTENDERS[name].missing:
        pytest.skip(f"{name} is not installed")
    ours = worker._Bench("softmaxloss")
    child = worker.Worker(name)
    try:
        for case in map(Case.parse, EVERY_KIND):
            if not contenders.CONTENDERS[name].takes(case):
                continue
            ours.load(case, 2)
            ours.save("grad", tmp_path)
            for operation in child.load(case, 2):
                assert child.compare(operation, tmp_path) < min(agreement.TOLERANCE[case.dtype], 3e-2), (
                    case,
                    operation,
                )
    finally:
        child.close()


def test_every_operation_goes_through_its_buffers(monkeypatch):
    """Three calls give the same answer, from and to other memory each."""
    import softmaxloss

    seen = []
    both = softmaxloss.softmax_cross_entropy_and_grad

    def noted(logits, labels, *, out=None, **options):
        seen.append((logits.ctypes.data, None if out is None else out.ctypes.data))
        return both(logits, labels, out=out, **options)

    monkeypatch.setattr(softmaxloss, "softmax_cross_entropy_and_grad", noted)
    bench = worker._Bench("softmaxloss")
    bench.load(Case((5, 7)), 2)
    expected = both(*(lambda data: (data.logits, data.labels))(Case((5, 7)).data()))
    for name in ("grad", "grad_new", "grad_in_place"):
        seen.clear()
        for _ in range(3):
            loss, gradient = bench._answer(name)
            assert loss == expected[0]
            np.testing.assert_array_equal(gradient, expected[1])
        logits, outs = zip(*seen, strict=True)
        assert logits[0] == logits[2] != logits[1]
        if name == "grad_new":
            assert set(outs) == {None}
        else:
            assert outs[0] == outs[2] != outs[1]


@pytest.mark.parametrize(
    ("levels", "total"), [((("3", "32768K", "0-1"), ("3", "16384K", "2")), 48 << 20), ((), 32 << 20)]
)
def test_last_level_cache_is_that_of_all_groups(tmp_path, levels, total):
    for cpu, (level, size, shared) in enumerate(levels):
        for index, facts in enumerate((("1", "32K", str(cpu)), (level, size, shared))):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, fact in zip(("level", "size", "shared_cpu_list"), facts, strict=True):
                (folder / name).write_text(fact + "\n")
    assert rotation.last_level_cache_bytes(tmp_path) == total


def test_buffers_outgrow_the_cache(monkeypatch):
    monkeypatch.setattr(rotation, "last_level_cache_bytes", lambda: 32 << 20)
    assert rotation.buffers(Case((8192, 1024))) == 8
    assert rotation.buffers(Case((8192, 1000))) == 9
    assert rotation.buffers(Case((1, 10))) == 1
    assert rotation.buffers(Case((1 << 20, 1 << 20))) == 1  # more than there is room for


@pytest.mark.parametrize("kind", accuracy.KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reference_is_exact(kind, dtype):
    logits, labels = accuracy.KINDS[kind](np.random.default_rng(3), 4, 9)
    logits = logits.astype(dtype)
    expected = exact.softmax_cross_entropy(logits, labels, reduction="none", digits=exact.FLOAT64_DIGITS)
    for row in range(4):
        loss, gradient = reference.softmax_loss(logits[row], labels[row])
        for found, right in ((loss, [expected.loss[row]]), (gradient, expected.grad[row])):
            with mp.workdps(40):
                for high, low, number in zip(found.high, found.low, right, strict=True):
                    assert abs(mpf(high) + mpf(low) - number) <= abs(number) * 1e-30


def test_kinds_are_what_they_say():
    rng = np.random.default_rng(3)
    logits, labels = accuracy.confident(rng, 50, 20)
    losses = [float(reference.softmax_loss(*row)[0].high[0]) for row in zip(logits, labels, strict=True)]
    assert max(losses) < 1e-9
    assert min(losses) > 1e-18
    logits, labels = accuracy.masked(rng, 50, 20)
    assert (np.isinf(logits).sum(axis=1) == 6).all()
    assert np.isfinite(logits[np.arange(50), labels]).all()


def test_relative_errors_are_told_as_they_are():
    one = reference.Exact(np.array([4e-9, 1.0, 1.0, 0.0, 0.0, 3.0]), np.array([0.0, 2.0**-60, 0.0, 0.0, 0.0, 0.0]))
    errors = one.relative_errors(np.array([0.0, 1.0, np.nan, 0.0, 1e-30, np.inf]))
    np.testing.assert_array_equal(errors, [1.0, 2.0**-60, np.nan, 0.0, np.inf, np.inf])


def test_a_wrong_answer_shows_in_the_accuracy_table(monkeypatch):
    """NaN at a masked class, and a loss of 0, which is all wrong."""

    def wrong(logits, labels):
        loss, gradient = answers.softmaxloss(logits, labels)
        return np.zeros_like(loss), np.where(np.isinf(logits), np.nan, gradient).astype(logits.dtype)

    monkeypatch.setitem(answers.ANSWERS, "scipy", wrong)
    kinds = {kind["kind"]: kind for kind in accuracy.measure(["softmaxloss", "scipy"], "float32", [9])}
    assert kinds["ordinary"]["errors"]["scipy"]["loss"] == {"worst": 2.0**24, "median": 2.0**24}
    assert kinds["masked"]["errors"]["scipy"]["gradient"]["worst"] == "nan"
    assert kinds["masked"]["errors"]["softmaxloss"]["gradient"]["worst"] < 64
    machine = results(SECONDS)["machine"]
    table = tables.accuracy(
        {"machine": machine, "left_out": {}, "dtype": "float32", "kinds": list(kinds.values())}, False
    )
    assert "| NaN / " in table
    assert "| 1.7e7 / 1.7e7 |" in table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.352, "0.35"),
        (14.6, "15"),
        (124.0, "120"),
        (5.946e5, "5.9e5"),
        (9e15, "9.0e15"),
        ("inf", "infinity"),
    ],
)
def test_units_are_short(value, text):
    assert tables._units(value) == text


def test_both_languages_show_the_same_accuracy():
    english, chinese = ((ROOT / "docs" / name).read_text() for name in ("accuracy.md", "zh/accuracy.md"))
    for command in ("accuracy", "accuracy --dtype float64"):
        begin, end = tables.BEGIN.format(command), tables.END.format(command)
        one, other = (text.split(begin)[1].split(end)[0] for text in (english, chinese))
        assert one == other
        for kind in accuracy.KINDS:
            assert one.count(f"| {kind} |") == 2
