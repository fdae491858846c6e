"""SoftmaxClassifierCV: its choices are those of separate fits and of scikit-learn's, and conventions are kept."""

import pickle
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from example_data import dataset
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import get_scorer, log_loss
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import softmaxloss.objective
import softmaxloss.path
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.classifier_cv import SoftmaxClassifierCV

CS = [10.0, 0.01, 1.0]


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


def problem(n_rows=240, n_features=5, n_classes=3, seed=0):
    random = np.random.default_rng(seed)
    X = random.standard_normal((n_rows, n_features)) * [1.0, 5.0, 0.2, 1.0, 3.0]
    logits = X @ random.standard_normal((n_features, n_classes))
    return X, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)


@parametrize_with_checks(
    [SoftmaxClassifierCV(), SoftmaxClassifierCV(Cs=[0.1, 10.0], cv=3, scoring=None, refit=False, n_jobs=1)]
)
def test_scikit_learn_finds_no_fault(estimator, check):
    check(estimator)


@pytest.mark.parametrize("n_jobs", [None, 1, 3])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"fit_intercept": False}, {"class_weight": "balanced", "label_smoothing": 0.1}], ids=str
)
def test_each_solution_is_that_of_a_fit_of_its_own(options, n_classes, kind, n_jobs):
    X, y = problem(n_classes=n_classes)
    weights = np.random.default_rng(1).random(len(y)) + 0.5
    folds = list(StratifiedKFold(3).split(X, y))
    model = SoftmaxClassifierCV(CS, cv=3, tol=1e-9, n_jobs=n_jobs, **options).fit(kind(X), y, weights)

    assert model.scores_.shape == model.n_iter_.shape == (3, 3)
    assert model.coefs_paths_.shape == (3, 3, n_classes if n_classes > 2 else 1, 5 + options.get("fit_intercept", True))
    if "class_weight" in options:  # of all rows, not of each fold's
        by_class = weights.sum() / (n_classes * np.bincount(y, weights))
        options = {**options, "class_weight": dict(enumerate(by_class))}
    for f, (train, test) in enumerate(folds):
        for k, C in enumerate(CS):
            alone = SoftmaxClassifier(C, tol=1e-9, **options).fit(kind(X[train]), y[train], weights[train])
            path = model.coefs_paths_[f, k]
            np.testing.assert_allclose(path[:, :5], alone.coef_, atol=1e-6)
            if options.get("fit_intercept", True):
                np.testing.assert_allclose(path[:, 5], alone.intercept_, atol=1e-6)
            expected = -log_loss(y[test], alone.predict_proba(X[test]), sample_weight=weights[test])
            assert model.scores_[f, k] == pytest.approx(expected, abs=1e-6)
    best = int(model.scores_.mean(axis=0).argmax())
    np.testing.assert_equal(model.C_, CS[best])
    assert model.converged_
    refitted = SoftmaxClassifier(CS[best], tol=1e-9, **options).fit(kind(X), y, weights)
    np.testing.assert_allclose(model.coef_, refitted.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, refitted.intercept_, atol=1e-6)
    assert model.loss_curve_[-1:] in ([], [pytest.approx(refitted.loss_curve_[-1])])


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("scoring", [None, "neg_log_loss", "neg_brier_score"])
@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
def test_it_chooses_as_scikit_learn_does(name, scoring, refit):
    X, y = dataset(name)
    X = StandardScaler().fit_transform(X)
    options = {"Cs": [0.01, 0.3, 10.0], "cv": 4, "scoring": scoring, "refit": refit}
    ours = SoftmaxClassifierCV(tol=1e-8, **options).fit(X, y)
    theirs = LogisticRegressionCV(
        l1_ratios=(0.0,), use_legacy_attributes=False, tol=1e-10, max_iter=10_000, solver="newton-cholesky", **options
    ).fit(X, y)
    np.testing.assert_allclose(ours.C_, theirs.C_)
    np.testing.assert_allclose(ours.scores_, theirs.scores_[:, 0], atol=1e-5)
    np.testing.assert_array_equal(ours.Cs_, theirs.Cs_)
    assert ours.coefs_paths_.shape == theirs.coefs_paths_[:, 0].shape
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-5)
    assert hasattr(ours, "loss_curve_") is refit


def test_the_usual_values_of_c_are_scikit_learns():
    X, y = problem()
    np.testing.assert_array_equal(SoftmaxClassifierCV(Cs=3, cv=2).fit(X, y).Cs_, [1e-4, 1.0, 1e4])


def test_a_path_costs_less_than_three_fits(monkeypatch):
    """Passes over the rows: of ten values of C in one fold, and of one fit with the largest alone."""
    X, y = dataset("digits")
    passes = 0
    evaluate = softmaxloss.objective.Objective.value_and_gradient

    def counted(self, parameters):
        nonlocal passes
        passes += 1
        return evaluate(self, parameters)

    monkeypatch.setattr(softmaxloss.objective.Objective, "value_and_gradient", counted)
    SoftmaxClassifier(1e4).fit(X, y)
    of_one, passes = passes, 0
    SoftmaxClassifierCV(cv=[(np.arange(len(y)), np.arange(9))], refit=False).fit(X, y)
    assert passes < 3 * of_one


def test_labels_tables_and_pickles():
    X, y = problem()
    frame = pd.DataFrame(X, columns=list("abcde"))
    names = np.array(["low", "middle", "high"], dtype=object)[y]
    model = SoftmaxClassifierCV(CS, cv=2).fit(frame, names)
    assert model.feature_names_in_.tolist() == list("abcde")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    assert set(model.predict(frame)) <= set(names)
    assert model.score(frame, names) == pytest.approx(-log_loss(names, model.predict_proba(frame)), abs=1e-9)
    with pytest.raises(ValueError, match="y holds 'none', which is none of the 3 classes"):
        model.score(frame, np.where(names == "low", "none", names))


def test_a_class_that_the_training_rows_lack():
    X, y = problem(60)
    y[:2] = 3
    halves = np.arange(60) < 30
    folds = [(np.flatnonzero(halves), np.flatnonzero(~halves)), (np.flatnonzero(~halves), np.flatnonzero(halves))]
    model = SoftmaxClassifierCV([0.1, 1.0], cv=folds).fit(X, y)
    assert model.coefs_paths_.shape == (2, 2, 4, 6)
    assert np.isfinite(model.scores_).all()
    assert model.scores_[1].mean() < model.scores_[0].mean()


def test_rows_that_weigh_nothing():
    X, y = problem(60)
    weights = (np.arange(60) < 20).astype(float)
    folds = [(np.arange(20, 60), np.arange(20)), (np.arange(40), np.arange(40, 60))]
    for n_jobs in (1, 2):
        with pytest.raises(ValueError, match="the training rows of fold 1 of 2 weigh nothing"):
            SoftmaxClassifierCV(CS, cv=folds, n_jobs=n_jobs).fit(X, y, weights)


@pytest.mark.parametrize("weight", [2.0, None])
def test_one_weight_for_all_rows(weight):
    X, y = problem()
    model = SoftmaxClassifierCV(CS, cv=2, tol=1e-8).fit(X, y, weight)
    expected = SoftmaxClassifierCV(CS, cv=2, tol=1e-8).fit(X, y, None if weight is None else np.full(len(y), weight))
    np.testing.assert_allclose(model.scores_, expected.scores_, atol=1e-7)


def test_scores_that_are_nan_are_not_chosen():
    X, y = problem()

    def scorer(estimator, X, y):
        return np.nan if estimator.C == 1.0 else estimator.C

    for refit in (True, False):
        with pytest.warns(UserWarning, match="some scores are NaN"):
            assert SoftmaxClassifierCV(CS, cv=2, scoring=scorer, refit=refit).fit(X, y).C_ == 10.0


def test_what_is_not_converged_is_told():
    X, y = problem()
    with pytest.warns(ConvergenceWarning, match=r"short of tol=1e-09 in \d+ of 7 fits.*raise max_iter=2 or tol"):
        model = SoftmaxClassifierCV(CS, cv=2, tol=1e-9, max_iter=2).fit(X, y)
    assert not model.converged_
    assert model.n_iter_.max() == 2


def test_metadata_is_routed():
    X, y = problem()
    weights, groups = np.random.default_rng(1).random(len(y)) + 0.5, np.arange(len(y)) % 4
    scorer = get_scorer("neg_log_loss")
    with pytest.raises(TypeError, match="fit was given groups: enable scikit-learn's metadata routing"):
        SoftmaxClassifierCV(CS, cv=GroupKFold(4)).fit(X, y, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        model = SoftmaxClassifierCV(CS, cv=GroupKFold(4), scoring=scorer.set_score_request(sample_weight=False))
        model.set_fit_request(sample_weight=True).fit(X, y, sample_weight=weights, groups=groups)
        test = groups == 3
        alone = SoftmaxClassifier(CS[0], tol=1e-8).fit(X[~test], y[~test], weights[~test])
        expected = -log_loss(y[test], alone.predict_proba(X[test]))
        assert np.abs(model.scores_[:, 0] - expected).min() < 1e-3
        assert model.score(X, y) == pytest.approx(-log_loss(y, model.predict_proba(X)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"Cs": 0}, "Cs=0 was given: set Cs to a number of at least 1"),
        ({"Cs": []}, r"Cs=\[\] was given"),
        ({"Cs": [1.0, -1.0]}, "numbers above 0"),
        ({"Cs": [np.nan]}, "numbers above 0"),
        ({"Cs": ["1"]}, "numbers above 0"),
        ({"Cs": True}, "Cs=True was given"),
        ({"n_jobs": 0}, "n_jobs=0 was given"),
        ({"n_jobs": 1.5}, "n_jobs=1.5 was given"),
        ({"refit": "yes"}, "refit='yes' was given"),
        ({"tol": 0}, "tol=0 was given"),
        ({"checkpoint": 3}, "checkpoint=3 was given"),
        ({"checkpoint": __file__}, "is a file: set checkpoint to a folder"),
    ],
    ids=str,
)
def test_bad_parameters(options, message):
    X, y = problem(30)
    model = SoftmaxClassifierCV(**{"Cs": CS, "cv": 2, **options})
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert vars(model) == before


def test_no_penalty_at_all():
    X, y = problem()
    model = SoftmaxClassifierCV([1.0, np.inf, 100.0], cv=2, tol=1e-7).fit(X, y)
    folds = list(StratifiedKFold(2).split(X, y))
    alone = SoftmaxClassifier(np.inf, tol=1e-7).fit(X[folds[0][0]], y[folds[0][0]])
    np.testing.assert_allclose(model.coefs_paths_[0, 1][:, :5], alone.coef_, atol=1e-3)


@pytest.mark.parametrize("unit", [1e-80, 1e-60, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_penalties_of_all_sizes_on_one_path(n_classes, unit):
    X, y = problem(n_classes=n_classes)
    model = SoftmaxClassifierCV([1e-200, 1.0, 1e200, np.inf], cv=2, n_jobs=1).fit(X * unit, y)
    assert np.isfinite(model.coefs_paths_).all()
    assert model.converged_


# ----- checkpoints


def interrupt_at(monkeypatch, call):
    """Have the objective's n-th evaluation, and all after it in other threads, raise what Ctrl-C does."""
    evaluate, calls = softmaxloss.objective.Objective.value_and_gradient, 0

    def interrupted(self, parameters):
        nonlocal calls
        calls += 1
        if calls >= call:
            raise KeyboardInterrupt
        return evaluate(self, parameters)

    monkeypatch.setattr(softmaxloss.objective.Objective, "value_and_gradient", interrupted)


def classifier(checkpoint=None, **options):
    return SoftmaxClassifierCV(**{"Cs": 5, "cv": 3, "tol": 1e-8, **options}, checkpoint=checkpoint)


def assert_same_bits(one, other):
    for name in ("coef_", "intercept_", "coefs_paths_", "scores_", "n_iter_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.loss_curve_ == other.loss_curve_


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("calls", [(2,), (31,), (40, 30, 25)], ids=str)
def test_an_interrupted_fit_ends_at_the_same_bits(calls, n_jobs, tmp_path, monkeypatch):
    X, y = problem()
    for call in calls:
        with monkeypatch.context() as patch:
            interrupt_at(patch, call)
            with pytest.raises(KeyboardInterrupt):
                classifier(tmp_path / "folds", n_jobs=n_jobs).fit(X, y)
    assert_same_bits(classifier(tmp_path / "folds", n_jobs=n_jobs).fit(X, y), classifier().fit(X, y))
    assert len(list((tmp_path / "folds").iterdir())) == 4  # three folds, and all rows


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    X, y = problem()
    whole = classifier(tmp_path).fit(X, y)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert_same_bits(classifier(tmp_path).fit(X, y), whole)


@pytest.mark.parametrize(
    "other",
    [{"tol": 1e-7}, {"Cs": 4}, {"label_smoothing": 0.1}, {"fit_intercept": False}, {"max_iter": 99}, {}],
    ids=str,
)
def test_other_fits_have_files_of_their_own(other, tmp_path, monkeypatch):
    X, y = problem()
    classifier(tmp_path).fit(X, y)
    interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        classifier(tmp_path, n_jobs=1, **other).fit(X if other else X + 1, y)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    X, y = problem()
    classifier(tmp_path).fit(X, y)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is no checkpoint of SoftmaxClassifierCV \(\w+\): delete the file"):
        classifier(tmp_path).fit(X, y)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    X, y = problem()
    classifier(tmp_path).fit(X, y)
    monkeypatch.setattr(softmaxloss.path, "_FORMAT", 99)
    with pytest.raises(ValueError, match="another version of softmaxloss: delete it"):
        classifier(tmp_path).fit(X, y)


KILLED = """
import sys
from threadpoolctl import threadpool_limits
sys.path.insert(0, sys.argv[2])
from test_classifier_cv import classifier, problem
X, y = problem(3000)
print("started", flush=True)
with threadpool_limits(1, user_api="blas"):
    model = classifier(sys.argv[1]).fit(X, y)
print(model.coef_.tobytes().hex())
"""


def test_kills_at_any_moment(tmp_path, request):
    random = np.random.default_rng(7)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "folds"), str(request.path.parent)]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "started\n"
            try:
                process.wait(timeout=random.uniform(0.02, 0.2))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout.split()[1]) == classifier().fit(*problem(3000)).coef_.tobytes()
