"""Tests of the benchmark of classifiers."""

import json
import signal
import sys
import time

import numpy as np
import pytest
from benchmarks import classifier, classifier_table
from benchmarks.classifier_cases import CASES, ClassifierCase
from benchmarks.classifier_contenders import CLASSIFIERS, has_room_for_hessian
from benchmarks.classifier_watch import GAPS, Problem, Watch
from benchmarks.dense import DisagreementError
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression
from test_benchmarks import results, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc and /sys")

SMALL = {
    "dense": ClassifierCase.parse("embeddings:80x9x3"),
    "sparse": ClassifierCase.parse("text:80x60x3"),
    "two classes": ClassifierCase.parse("weak:80x9x2"),
}
EFFORT = classifier.Effort(seconds=20, repeats=1)
FIRST, LAST = map(str, GAPS)


@pytest.fixture(params=SMALL)
def small(request):
    return SMALL[request.param]


def lowest(case):
    """Return the lowest value of the objective, by another solver in float64."""
    X, labels = case.data()
    X = X.astype(np.float64)
    solver = LogisticRegression(C=case.C, solver="newton-cholesky", tol=1e-10).fit(X, labels)
    return Problem(X, labels, case.C).objective(solver.coef_, solver.intercept_)


def fit(monkeypatch, name, case, *arguments):
    monkeypatch.setitem(classifier._own, "name", name)
    monkeypatch.setitem(classifier._own, "problem", Problem(*case.data(), case.C))
    return classifier._fit(*arguments)


def test_it_runs(tmp_path):
    file = tmp_path / "classifier.json"
    arguments = ["--cases", "iris", "--contenders", "newton-cholesky", "--seconds", 5, "--threads", 1, "--json", file]
    done = run("classifier", "--quick", *arguments)
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured["contenders"] == ["softmaxloss", "newton-cholesky"]
    assert measured["machine"]["threads"] == 1
    (case,) = measured["cases"]
    assert case["best"] == pytest.approx(lowest(CASES["iris"]), rel=1e-8)
    for one in case["fits"].values():
        assert 0 < one["reached"][FIRST]["seconds"] <= one["reached"][LAST]["seconds"] <= one["seconds"]
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "<!-- begin: python -m benchmarks classifier -->"
    assert sum(line.startswith("| iris, 150 x 4, 3 classes |") for line in lines) == 4


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if CLASSIFIERS[name].watched])
def test_a_watched_fit_ends_at_the_smallest_gap(monkeypatch, name, small):
    best = lowest(small)
    found = fit(monkeypatch, name, small, best, EFFORT)
    assert found["reached"].keys() == {FIRST, LAST}
    first, last = found["reached"][FIRST], found["reached"][LAST]
    assert 0 < first["passes"] <= last["passes"]
    assert 0 < first["seconds"] <= last["seconds"] == found["seconds"]
    assert best * (1 - 1e-9) <= found["lowest"] <= best * (1 + GAPS[-1])
    # The last point that it evaluated is the first so near.
    *before, (_, value, passes) = found["trajectory"]
    assert value == pytest.approx(best, rel=1e-5)
    assert passes == last["passes"]
    assert all(value > best * (1 + 0.5 * GAPS[-1]) for _, value, _ in before)
    assert not found["ended"]


@pytest.mark.parametrize("name", ["sag", "saga"])
def test_fits_of_so_many_passes(monkeypatch, name):
    case = SMALL["sparse"]
    best = lowest(case)
    assert fit(monkeypatch, name, case, best, EFFORT, 1)["reached"] == {}
    enough = fit(monkeypatch, name, case, best, EFFORT, 3000)
    assert enough["reached"].keys() == {FIRST, LAST}
    assert enough["reached"][LAST] == {"seconds": enough["seconds"], "passes": 3000}


def test_a_long_fit_finds_the_lowest_value(monkeypatch, small):
    found = fit(monkeypatch, "softmaxloss", small, None, EFFORT)
    assert found["ended"]
    assert found["reached"] == {}
    assert found["lowest"] == pytest.approx(lowest(small), rel=1e-9)


def test_a_fit_ends_with_its_time():
    class Endless:
        def fit(self, X, labels):
            while True:
                time.sleep(0.01)

    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    watch = Watch(Problem(*SMALL["dense"].data(), 1.0), 1.0, 0.1)
    watch.fit(Endless())
    assert watch.total >= 0.1
    assert (watch.ended, watch.reached) == (False, {})
    # The alarm that was set before, such as a test's own time limit, is again.
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (timer > 0)


def test_a_fit_that_python_cannot_stop_ends_with_its_process():
    effort = classifier.Effort(seconds=0.2, repeats=1)
    with classifier.Process("saga", CASES["digits"], 1) as process:
        assert classifier._fit_in_time(process, 1e-9, effort, 10**6) is None
        assert classifier._fit_in_time(process, 1e-9, effort, 1)["seconds"] > 0


def test_another_objective_is_an_error():
    watch = Watch(Problem(*SMALL["dense"].data(), 1.0), 0.5, 60)
    zeros = np.zeros((3, 9)), np.zeros(3)
    watch.see(np.log(3), lambda: zeros)
    with pytest.raises(DisagreementError, match=r"objective is 2\.0 where it is 1\.098"):
        watch.see(2.0, lambda: zeros)


def test_the_objective():
    X, labels = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([1, 0])
    coef, intercept = np.array([[0.5, -1.0], [0.25, 0.0], [1.0, 1.0]]), np.array([0.0, 1.0, -1.0])
    logits = X @ coef.T + intercept
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(share[[0, 1], labels]).mean() + np.square(coef).sum() / (2 * 10 * 2)
    assert Problem(X, labels, 10.0).objective(coef, intercept) == pytest.approx(expected)
    logit = X @ coef[0] + 0.5
    expected = np.log1p(np.exp(np.where(labels == 1, -logit, logit))).mean() + np.square(coef[0]).sum() / 40
    for shaped in (coef[0], coef[:1]):
        assert Problem(X, labels, 10.0).objective(shaped, 0.5) == pytest.approx(expected)


def test_numbers_of_passes_close_in():
    def with_reached(passes):
        return {
            "seconds": float(passes),
            "reached": {str(g): {} for g, need in zip(GAPS, (11, 50), strict=True) if passes >= need},
        }

    fits, passes = {}, 1
    while passes:
        fits[passes] = with_reached(passes)
        passes = classifier.more_passes(fits, seconds=1000.0)
    assert list(fits) == [1, 2, 4, 8, 16, 32, 64]
    for gap, needed in zip(GAPS, (11, 50), strict=True):
        while passes := classifier.passes_between(fits, gap):
            fits[passes] = with_reached(passes)
        enough = min(passes for passes, one in fits.items() if str(gap) in one["reached"])
        assert needed <= enough <= classifier.NEAR_PASSES * needed
    # Where twice as many do not fit the time, those that do are tried; after those, or one that was ended, none.
    assert classifier.more_passes({32: with_reached(32)}, seconds=48.0) == 48
    assert classifier.more_passes({32: with_reached(32)}, seconds=36.0) == 0
    assert classifier.more_passes({32: with_reached(32), 64: None}, seconds=1000.0) == 0


def test_fits_of_several_passes_are_put_together():
    def one(seconds, lowest, *reached):
        at = {"seconds": seconds, "passes": seconds}
        return {
            "reached": dict.fromkeys(reached, at),
            "seconds": seconds,
            "lowest": lowest,
            "growth_bytes": int(seconds),
            "trajectory": [(seconds, lowest, seconds)],
        }

    fits = {1: one(1.0, 3.0), 4: one(4.0, 1.0, FIRST), 2: one(2.0, 2.0, FIRST), 8: None}
    found = classifier.of_all_passes(fits, seconds=9.0)
    assert found["reached"] == {FIRST: {"seconds": 2.0, "passes": 2.0}}
    assert (found["seconds"], found["lowest"], found["growth_bytes"]) == (9.0, 1.0, 4)
    assert [point[0] for point in found["trajectory"]] == [1.0, 2.0, 4.0]
    assert classifier.of_all_passes({1: None}, seconds=9.0)["lowest"] is None


def test_the_table():
    def one(*seconds, ended=False, total=60.0):
        reached = {str(gap): {"seconds": s, "passes": 10 * s} for gap, s in zip(GAPS, seconds, strict=False)}
        return {"reached": reached, "seconds": total, "ended": ended, "growth_bytes": 2**21}

    fits = {"softmaxloss": one(1.0, 2.0), "lbfgs": one(5.0), "newton-cg": one(4.0, ended=True), "sag": one(9.0, 30.0)}
    case = {"title": "a case", "busy": 0.0, "best_ended": False, "best_seconds": 600.0, "lower_by": 3e-6, "fits": fits}
    lines = classifier_table.table(results({}) | {"contenders": list(fits), "cases": [case]}).splitlines()
    assert "| a case | 1 / 2 | 5 / > 60 | 4 / never | 9 / 30 |" in lines
    assert "| a case | 5.00 / > 30 | 4.00 (newton-cg) / 15 (sag) |" in lines
    assert "| a case | 10 / 20 | 50 / - | 40 / - | 90 / 300 |" in lines
    assert "| a case | 2.0 | 2.0 | 2.0 | 2.0 |" in lines
    assert "time in: a case (600 s)" in lines[-5]
    assert "a case (by 3e-06)" in lines[-3]
    assert classifier_table.faster({"softmaxloss": one(), "lbfgs": one(6.0)}, ["lbfgs"], GAPS[0]) == "< 0.10"
    assert classifier_table.faster({"softmaxloss": one(), "lbfgs": one()}, ["lbfgs"], GAPS[0]) == "-"
    assert classifier_table.faster(fits, ["newton-cg"], GAPS[1]) == "never"


def test_cases():
    assert ClassifierCase.parse("weak:10x4x2") == ClassifierCase("weak", "embeddings", 10, 4, 2, C=100.0)
    assert ClassifierCase.parse("digits") == CASES["digits"]
    for text, message in {
        "faces": "'faces' is no case",
        "text:10x3": "expected NAME:rows x features x classes",
        "iris:10x4x3": "iris comes as it is",
        "pixels:20x10x2": "pixels are of a square",
        "weak:10x4x1": "expected 2 classes at least",
    }.items():
        with pytest.raises(ValueError, match=message):
            ClassifierCase.parse(text)


@pytest.mark.parametrize("name", CASES)
def test_the_data_are_as_the_case_says(name):
    case = CASES[name] if CASES[name].is_built_in else ClassifierCase.parse(f"{name}:300x400x5")
    for one in (case, case.tiny):
        X, labels = one.data()
        assert X.shape == (one.rows, one.features)
        assert X.dtype.itemsize == one.itemsize
        np.testing.assert_array_equal(np.unique(labels), np.arange(one.classes))
    X, again = case.data()[0], case.data()[0]
    assert abs(X - again).max() == 0
    assert issparse(X) == (name == "text")
    if name in ("text", "sentences"):
        squares = X.multiply(X) if issparse(X) else X**2
        np.testing.assert_allclose(squares.sum(axis=1), 1, rtol=1e-5)
    if name == "pixels":
        pictures = X.reshape(-1, 20, 20)
        assert X.min() == 0
        assert X.max() == 1
        assert not pictures[:, [0, 1, -2, -1]].any()
        assert not pictures[:, :, [0, 1, -2, -1]].any()


def test_a_hessian_that_memory_does_not_hold_is_left_out():
    assert not has_room_for_hessian(CASES["embeddings"])
    assert not CLASSIFIERS["newton-cholesky"].takes(CASES["text"])
    assert has_room_for_hessian(CASES["pixels"])
    assert CLASSIFIERS["lbfgs"].takes(CASES["text"])
