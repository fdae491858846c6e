"""Processors without the newest instructions, as QEMU emulates them: what they compute here is right.

A processor that has all of them executes what another one stops at, so that it says nothing of the choice of kernels.
"""

import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

QEMU = shutil.which("qemu-x86_64")

pytestmark = pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="needs qemu-x86_64")

EVERY_KERNEL = """
import sys
import warnings

import numpy as np
import scipy.sparse

import softmaxloss as sl
from softmaxloss import _native

rng = np.random.default_rng(0)
found = {"instruction set": np.array(_native.instruction_set())}


def keep(name, *arrays):
    found.update({f"{name} {k}": np.asarray(array) for k, array in enumerate(arrays)})


for dtype in (np.float32, np.float64):
    for n_classes in (2, 10, 100, 1000):
        z, y = rng.normal(size=(37, n_classes)).astype(dtype), rng.integers(0, n_classes, 37)
        at = f"{z.dtype} {n_classes}"
        for name, logits in (("rows", z), ("columns", np.asfortranarray(z))):
            for options in ({}, {"label_smoothing": 0.1, "focal_gamma": 2.0, "z_loss": 0.01}):
                keep(f"{name} {at} {options}", *sl.softmax_cross_entropy_and_grad(logits, y, **options))
        keep(f"distributions {at}", *sl.softmax_cross_entropy_and_grad(z, rng.dirichlet(np.ones(n_classes), 37)))
        keep(f"product {at}", sl.hessian_vector_product(z, y, z[::-1].copy()))
        keep(f"softmax {at}", sl.softmax(z), sl.log_softmax(z), sl.logsumexp(z))
        keep(f"statistics {at}", sl.row_statistics(z, y).loss, sl.evaluate(z, y).metrics()["loss"])

X = rng.normal(size=(400, 9))
y = (X @ rng.normal(size=(9, 4)) + rng.gumbel(size=(400, 4))).argmax(axis=1)
for name, rows in (("dense", X), ("sparse", scipy.sparse.csr_array(np.maximum(X, 0)))):
    for labels in (y, y > 1):
        keep(f"fit {name} {labels.max()}", sl.SoftmaxClassifier(tol=1e-9).fit(rows, labels).coef_)
factors = np.eye(9) + _native.class_blocks_of
np.savez(sys.argv[1], **found)
"""
