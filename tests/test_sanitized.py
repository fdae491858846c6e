"""Guards the runs under sanitizers: what is tested is the instrumented build, and an error ends the process.

CONTRIBUTING.md tells how to run the kernels' tests that way. SOFTMAXLOSS_SANITIZE says what the build was made with
and SOFTMAXLOSS_SANITIZED where it is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from softmaxloss import _native

SANITIZERS = os.environ.get("SOFTMAXLOSS_SANITIZE", "").split(",")

# What each sanitizer calls from the kernels.
CHECKS = {"address": b"__asan_load", "undefined": b"__ubsan_handle", "thread": b"__tsan_read"}

# The last vector of this row lies past the end of an array.
PAST_THE_END = """
import numpy as np
import softmaxloss as sl

sl.logsumexp(np.lib.stride_tricks.as_strided(np.zeros(1000), (1001,), (8,)))
"""

# Two calls write to one gradient.
RACE = """
import threading
import numpy as np
import softmaxloss as sl

logits, labels, out = np.zeros((500, 100)), np.zeros(500, int), np.zeros((500, 100))
both_are_here = threading.Barrier(2)

def work():
    both_are_here.wait()
    for _ in range(100):
        sl.softmax_cross_entropy_and_grad(logits, labels, out=out)

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def skip_without(sanitizer):
    if sanitizer not in SANITIZERS:
        pytest.skip(f"not a run under the {sanitizer} sanitizer")


@pytest.mark.parametrize("sanitizer", CHECKS)
def test_the_instrumented_build_is_the_one_under_test(sanitizer):
    skip_without(sanitizer)
    module = Path(_native.__file__)
    assert module.is_relative_to(os.environ["SOFTMAXLOSS_SANITIZED"])
    assert CHECKS[sanitizer] in module.read_bytes()


@pytest.mark.parametrize(
    ("sanitizer", "code", "report"),
    [("address", PAST_THE_END, "ERROR: AddressSanitizer"), ("thread", RACE, "WARNING: ThreadSanitizer: data race")],
    ids=["address", "thread"],
)
def test_an_error_is_found(sanitizer, code, report):
    skip_without(sanitizer)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert report in done.stderr
    assert "softmaxloss::" in done.stderr  # the report names our functions
