"""A fit with a checkpoint: killed anywhere and started again, it ends at the same bits; other fits are refused."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

import softmaxloss.class_blocks
import softmaxloss.first_step
import softmaxloss.newton
import softmaxloss.objective
import softmaxloss.training
from softmaxloss.checkpoint import Checkpoint
from softmaxloss.classifier import SoftmaxClassifier


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


def problem(n_rows=600, n_features=20, n_classes=4, seed=0):
    random = np.random.default_rng(seed)
    X = random.standard_normal((n_rows, n_features)) @ random.standard_normal((n_features, n_features))
    logits = X @ random.standard_normal((n_features, n_classes)) * 0.3
    return X, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)


def classifier(checkpoint=None, **options):
    return SoftmaxClassifier(**{"C": 100.0, "tol": 1e-9, **options}, checkpoint=checkpoint)


def interrupt_at(monkeypatch, call):
    """Have the objective's n-th evaluation raise what Ctrl-C does."""
    evaluate, calls = softmaxloss.objective.Objective.value_and_gradient, 0

    def interrupted(self, parameters):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return evaluate(self, parameters)

    monkeypatch.setattr(softmaxloss.objective.Objective, "value_and_gradient", interrupted)


def fit_interrupted_at(calls, path, X, y, monkeypatch, **options):
    """Return a fit that went on from its checkpoint after it had been interrupted at each of these evaluations."""
    for call in calls:
        with monkeypatch.context() as patch:
            interrupt_at(patch, call)
            with pytest.raises(KeyboardInterrupt):
                classifier(path, **options).fit(X, y)
    return classifier(path, **options).fit(X, y)


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("calls", "newton"),
    [((3,), False), ((9,), False), ((12, 2, 3), False), ((6, 6), False), ((3,), True), ((8, 4), True)],
)
def test_an_interrupted_fit_ends_at_the_same_bits(kind, calls, newton, tmp_path, monkeypatch):
    if not newton:
        monkeypatch.setattr(softmaxloss.newton, "_FEW_HESSIAN_PRODUCTS", 0)
    X, y = problem()
    X = kind(X)
    whole = classifier().fit(X, y)
    path = tmp_path / "state.npz"
    assert whole.n_iter_ > (8 if newton else 15)

    resumed = fit_interrupted_at(calls, path, X, y, monkeypatch)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    np.testing.assert_array_equal(resumed.intercept_, whole.intercept_)
    assert resumed.loss_curve_ == whole.loss_curve_
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("calls", [(4,), (9, 8), (20,)])
@pytest.mark.parametrize("blocks", [False, True])
def test_a_fit_that_left_its_preconditioner_ends_at_the_same_bits(blocks, calls, tmp_path, monkeypatch):
    if not blocks:
        monkeypatch.setattr(softmaxloss.class_blocks, "_MOST_BYTES", 0)
        monkeypatch.setattr(softmaxloss.training, "_STALE", np.inf)  # else the product helps to the end
    random = np.random.default_rng(0)
    y = np.arange(2000) % 25
    X = 0.6 * random.standard_normal((25, 60))[y] + random.standard_normal((2000, 60))  # alike in all directions
    assert not softmaxloss.newton.hessian_rows(2000, 60, 25, 25 * 61, passes=1)
    whole = classifier().fit(X, y)
    path = tmp_path / "state.npz"

    resumed = fit_interrupted_at(calls, path, X, y, monkeypatch)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    with np.load(path) as file:
        facts = json.loads(str(file["facts"]))
    assert (facts["preconditioner"], facts["preconditioned"]) == ((1, True) if blocks else (0, False))


@pytest.mark.parametrize("calls", [(2,), (4, 3), (9, 8), (20,)])
@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_a_fit_of_scales_ends_at_the_same_bits(unit, calls, tmp_path, monkeypatch):
    """Those of features alike, which stay scaled less, and of one in a unit of its own."""
    random = np.random.default_rng(0)
    y = np.arange(600) % 3
    X = random.standard_normal((600, 400)) * (random.random((600, 400)) < 1.0 / np.arange(1, 401) ** 0.7)
    X[:, 0] = unit * (random.standard_normal(600) + y)
    X = scipy.sparse.csr_array(X)
    whole = classifier().fit(X, y)
    assert whole.n_iter_ > 15
    path = tmp_path / "state.npz"

    resumed = fit_interrupted_at(calls, path, X, y, monkeypatch)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    assert resumed.loss_curve_ == whole.loss_curve_


@pytest.mark.parametrize("calls", [(4,), (9, 8), (20,)])
def test_a_fit_whose_product_comes_late_ends_at_the_same_bits(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(softmaxloss.training, "kronecker_after", lambda *size: 7)
    random = np.random.default_rng(0)
    y = np.arange(2000) % 25
    X = random.standard_normal((25, 60))[y] + random.standard_normal((2000, 60)) @ random.standard_normal((60, 60))
    whole = classifier().fit(X, y)
    path = tmp_path / "state.npz"

    resumed = fit_interrupted_at(calls, path, X, y, monkeypatch)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    with np.load(path) as file:
        assert json.loads(str(file["facts"]))["preconditioner"] >= 2


@pytest.mark.parametrize("calls", [(4,), (13, 8), (27,)])
def test_a_fit_that_forgot_steps_ends_at_the_same_bits(calls, tmp_path, monkeypatch):
    """Where a plane separates the rows, what was learnt at higher losses is forgotten."""
    random = np.random.default_rng(0)
    X, y = random.standard_normal((200, 100)), random.integers(5, size=200)
    monkeypatch.setattr(softmaxloss.training, "_HESSIAN_AFTER", 10**6)
    states, save = [], Checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(
            Checkpoint, "save", lambda self, state: states.append(len(state.pairs.steps)) or save(self, state)
        )
        whole = classifier(tmp_path / "whole.npz").fit(X, y)
    assert states[9] < 10

    resumed = fit_interrupted_at(calls, tmp_path / "state.npz", X, y, monkeypatch)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    assert resumed.loss_curve_ == whole.loss_curve_


@pytest.mark.parametrize("calls", [(1,), (2, 2), (3, 9)])
def test_a_fit_whose_first_step_is_measured_ends_at_the_same_bits(calls, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    y = np.arange(1200) % 60
    X = 3 * random.standard_normal((60, 40))[y] + random.standard_normal((1200, 40))
    lengths, measure = [], softmaxloss.first_step.FirstStep.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            softmaxloss.first_step.FirstStep, "__call__", lambda *given: lengths.append(measure(*given)) or lengths[-1]
        )
        whole = classifier(C=1.0).fit(X, y)
    assert len(lengths) == 1
    assert lengths[0] < 1.0

    resumed = fit_interrupted_at(calls, tmp_path / "state.npz", X, y, monkeypatch, C=1.0)

    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    assert resumed.loss_curve_ == whole.loss_curve_


def test_a_state_without_steps_is_kept(tmp_path):
    """Newton's method forgets them where it makes the Hessian anew, as after 40 iterations that rounding prolongs."""
    random = np.random.default_rng(0)
    X, y = random.standard_normal((60, 5)).astype(np.float32), random.integers(3, size=60)
    path = tmp_path / "state.npz"
    with pytest.warns(ConvergenceWarning):
        model = classifier(path, tol=1e-8, max_iter=40).fit(X, y)
    assert model.n_iter_ == 40
    with np.load(path) as file:
        assert file["steps"].shape == file["changes"].shape == (0, 18)
    with pytest.warns(ConvergenceWarning):
        resumed = classifier(path, tol=1e-8, max_iter=60).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        whole = classifier(tol=1e-8, max_iter=60).fit(X, y)
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)


def test_a_resumed_fit_does_only_what_is_left(tmp_path, monkeypatch):
    X, y = problem()
    path = tmp_path / "state.npz"
    whole = classifier(path).fit(X, y)

    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)  # the checkpoint is at most four iterations old
        again = classifier(path).fit(X, y)

    np.testing.assert_array_equal(again.coef_, whole.coef_)


def test_a_fit_stopped_by_max_iter_goes_on_with_more(tmp_path):
    X, y = problem()
    path = tmp_path / "state.npz"
    with pytest.warns(ConvergenceWarning, match="max_iter=10"):
        classifier(path, max_iter=10).fit(X, y)

    resumed = classifier(path).fit(X, y)

    np.testing.assert_array_equal(resumed.coef_, classifier().fit(X, y).coef_)


KILLED = """
import sys, warnings
import numpy as np
from threadpoolctl import threadpool_limits
sys.path.insert(0, sys.argv[2])
from test_checkpoint import classifier, problem
X, y = problem(4000, 60, 10)
print("started", flush=True)
with threadpool_limits(1, user_api="blas"):
    model = classifier(sys.argv[1], tol=1e-7).fit(X, y)
print(model.coef_.tobytes().hex())
"""


def test_kills_at_any_moment(tmp_path, request):
    path, random = tmp_path / "state.npz", np.random.default_rng(5)
    command = [sys.executable, "-c", KILLED, str(path), str(request.path.parent)]

    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "started\n"
            try:
                process.wait(timeout=random.uniform(0.02, 0.3))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    X, y = problem(4000, 60, 10)
    assert bytes.fromhex(done.stdout.split()[1]) == classifier(tol=1e-7).fit(X, y).coef_.tobytes()


def one_row_changed(X, y):
    return np.concatenate([X[:1] + 1, X[1:]]), y


def one_label_changed(X, y):
    return X, np.concatenate([(y[:1] + 1) % 4, y[1:]])


@pytest.mark.parametrize(
    ("options", "change", "name"),
    [
        ({"C": 3.0}, None, "with C 100.0 where this one has 3.0"),
        ({"tol": 1e-8}, None, "tol"),
        ({"label_smoothing": 0.1}, None, "label_smoothing"),
        ({"fit_intercept": False}, None, "fit_intercept"),
        ({"class_weight": {0: 2.0}}, None, "total weight|rows"),
        ({}, one_row_changed, "rows"),
        ({}, one_label_changed, "rows"),
        ({}, lambda X, y: (X[:-1], y[:-1]), "shape of X"),
        ({}, lambda X, y: (X.astype(np.float32), y), "dtype of X"),
        ({}, lambda X, y: (X, y % 3), "classes 4 where this one has 3"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(options, change, name, tmp_path):
    X, y = problem()
    path = tmp_path / "state.npz"
    classifier(path).fit(X, y)
    before = path.read_bytes()

    with pytest.raises(ValueError, match=rf"is the checkpoint of another fit.*({name}).*another path, or delete"):
        classifier(path, **options).fit(*(change(X, y) if change else (X, y)))

    assert path.read_bytes() == before


def test_heavier_rows_are_another_fit(tmp_path):
    X, y = problem()
    path = tmp_path / "state.npz"
    classifier(path).fit(X, y)

    with pytest.raises(ValueError, match="is the checkpoint of another fit, with penalty"):
        classifier(path).fit(X, y, sample_weight=2.0)


def test_a_warm_start_is_a_fit_of_its_own(tmp_path):
    X, y = problem()
    path = tmp_path / "state.npz"
    model = classifier(path, warm_start=True).fit(X, y)

    with pytest.raises(ValueError, match="with start None where this one has"):
        model.fit(X, y)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="is no checkpoint of SoftmaxClassifier"):
        classifier(path).fit(*problem())

    assert path.read_bytes() == content


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, weights=np.ones(3))

    with pytest.raises(ValueError, match="is no checkpoint of SoftmaxClassifier"):
        classifier(path).fit(*problem())


def test_bad_paths(tmp_path):
    with pytest.raises(ValueError, match="checkpoint=3 was given: set checkpoint to a path"):
        classifier(3).fit(*problem())
    with pytest.raises(ValueError, match="nowhere"):
        classifier(tmp_path / "nowhere" / "state.npz").fit(*problem())
