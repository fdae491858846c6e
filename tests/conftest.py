"""Fixtures that several test files share."""

import numpy as np
import pytest

import softmaxloss as sl
from softmaxloss import _native


@pytest.fixture(params=_native.supported_instruction_sets())
def instruction_set(request):
    """Run the test once with each instruction set that this machine has."""
    before = _native.instruction_set()
    _native.set_instruction_set(request.param)
    yield request.param
    _native.set_instruction_set(before)


@pytest.fixture
def keep_num_threads():
    before = sl.get_num_threads()
    yield before
    sl.set_num_threads(before)


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """Give a folder with iris.csv and the model trained on it."""
    from cli_runs import succeed
    from sklearn.datasets import load_iris

    folder = tmp_path_factory.mktemp("flowers")
    iris = load_iris(as_frame=True)
    table = iris.data.assign(species=iris.target_names[iris.target])
    table.to_csv(folder / "iris.csv", index=False)
    done = succeed(folder, "train", "iris.csv", "--target", "species", "--out", "models.skops")
    return folder, done


@pytest.fixture
def scored(tmp_path):
    """Give a folder with logits z.npy of three classes and labels y.npy."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "z.npy", rng.normal(size=(50, 3)))
    np.save(tmp_path / "y.npy", rng.integers(0, 3, 50))
    return tmp_path
