"""Threads, forks, instruction sets, what an import brings with it."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

import softmaxloss as sl
from softmaxloss import _native

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((3000, 100)).astype(np.float32)
LABELS = RNG.integers(0, 100, 3000)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_import_brings_numpy_and_nothing_heavier():
    heavy = "torch", "jax", "dask", "scipy", "sklearn", "pandas", "pyarrow", "rich", "typer", "skops", "mpmath"
    code = f"import sys, softmaxloss; print([m for m in {heavy!r} if m in sys.modules])"
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_names():
    assert set(sl.__all__) <= set(dir(sl))
    for name in sl.__all__:
        assert getattr(sl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sofmax'"):
        sl.sofmax  # noqa: B018  # the access is the test


def test_set_num_threads(keep_num_threads):
    sl.set_num_threads(3)
    assert sl.get_num_threads() == 3
    for wrong in (0, -1, 10**6):
        with pytest.raises(ValueError, match="number of threads must be from 1"):
            sl.set_num_threads(wrong)
    with pytest.raises(TypeError):
        sl.set_num_threads(1.5)
    assert sl.get_num_threads() == 3


def test_omp_num_threads_is_heeded():
    result = python("import softmaxloss as sl; print(sl.get_num_threads())", OMP_NUM_THREADS="1")
    assert result.stdout.strip() == "1"


def test_show_config(capsys):
    sl.show_config()
    printed = capsys.readouterr().out
    assert f"instruction_set:            {_native.instruction_set()}" in printed
    assert np.__version__ in printed
    assert sl.show_config(mode="dicts")["softmaxloss"] == sl.__version__
    with pytest.raises(ValueError, match="mode is 'json'"):
        sl.show_config(mode="json")


@pytest.mark.parametrize("name", _native.supported_instruction_sets())
def test_instruction_set_from_the_environment(name):
    code = "import softmaxloss as sl; print(sl.show_config(mode='dicts')['instruction_set'])"
    assert python(code, SOFTMAXLOSS_INSTRUCTION_SET=name).stdout.strip() == name


def test_unknown_instruction_set():
    result = python("import softmaxloss", SOFTMAXLOSS_INSTRUCTION_SET="sse9")
    assert result.returncode == 1
    assert "SOFTMAXLOSS_INSTRUCTION_SET is 'sse9'; this machine can run" in result.stderr
    with pytest.raises(ValueError, match="no such instruction set"):
        _native.set_instruction_set("sse9")


def test_instruction_sets_agree(instruction_set):
    loss, grad = sl.softmax_cross_entropy_and_grad(LOGITS, LABELS)
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(LOGITS.astype(np.float64), LABELS)
    assert loss == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(grad, expected_grad, rtol=2e-6)


def test_after_fork():
    """The threads of the parent are not there after a fork: the child does without."""
    code = """
import os, numpy as np, softmaxloss as sl
rng = np.random.default_rng(0)
logits, labels = rng.standard_normal((3000, 100), dtype=np.float32), rng.integers(0, 100, 3000)
loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
child = os.fork()
again, grad_again = sl.softmax_cross_entropy_and_grad(logits, labels)
assert again == loss and np.array_equal(grad, grad_again)
if child == 0:
    os._exit(42)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = python(code, OMP_NUM_THREADS="2")
    assert done.stdout == "42\n", done.stderr


def test_many_python_threads_at_once():
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(LOGITS, LABELS)

    def work(_):
        return sl.softmax_cross_entropy_and_grad(LOGITS, LABELS)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for loss, grad in pool.map(work, range(64)):
            assert loss == expected
            np.testing.assert_array_equal(grad, expected_grad)
