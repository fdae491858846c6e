"""Processors without the newest instructions, as QEMU emulates them.

One that has them all executes what others stop at, and so says nothing of what is called before the choice of kernels.
All kernels for the same instructions are compiled and chosen at once: some of them tell of the others.
"""

import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

# No test can bring an emulator; `.ci/run` installs one, so that these are not skipped there.
QEMU = shutil.which("qemu-x86_64")
FIRST_WITH_AVX = (7, 2)  # older ones have no processor to emulate that has AVX2

COMPUTE = """
import sys
import numpy as np
import softmaxloss as sl
from softmaxloss import _native

found = _native.supported_instruction_sets()
assert found == sys.argv[1].split() and found[0] == _native.instruction_set(), found
rng = np.random.default_rng(0)
for dtype, rtol in ((np.float32, 1e-5), (np.float64, 1e-13)):
    def check(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())

    for n_rows, n_classes in ((7, 2), (40, 10), (30, 100), (5, 1000)):
        z, v = rng.normal(size=(2, n_rows, n_classes)).astype(dtype)
        y = rng.integers(0, n_classes, n_rows)
        p = np.exp(z.astype(np.float64))
        p /= p.sum(axis=1, keepdims=True)
        of_labels = p[np.arange(n_rows), y]
        gradient = (p - np.eye(n_classes)[y]) / n_rows
        for logits in (z, np.asfortranarray(z)):
            value, its = sl.softmax_cross_entropy_and_grad(logits, y)
            check(value, -np.log(of_labels).mean())
            check(its, gradient)
            check(sl.softmax(logits), p)
            check(sl.log_softmax(logits), np.log(p))
            product = sl.hessian_vector_product(logits, y, v)
            check(product, p * (v - (p * v).sum(axis=1, keepdims=True)) / n_rows)
        check(sl.softmax_cross_entropy(z, y, focal_gamma=2.0), (-((1 - of_labels) ** 2) * np.log(of_labels)).mean())
        check(sl.softmax_cross_entropy(z, p), -(p * np.log(p)).sum(axis=1).mean())
        check(sl.row_statistics(z, y).loss, -np.log(of_labels))
"""


def qemu_version():
    text = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)", text).groups()))


@pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="needs qemu-x86_64, on x86-64")
@pytest.mark.parametrize(("processor", "instruction_sets"), [("Nehalem", "baseline"), ("Haswell", "avx2 baseline")])
def test_kernels(processor, instruction_sets):
    if "avx2" in instruction_sets and qemu_version() < FIRST_WITH_AVX:
        pytest.skip("this QEMU has no AVX")
    environment = {name: value for name, value in os.environ.items() if name != "SOFTMAXLOSS_INSTRUCTION_SET"}
    command = [QEMU, "-cpu", processor, sys.executable, "-c", COMPUTE, instruction_sets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
