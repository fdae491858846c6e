"""Guards a run under sanitizers: what is tested must be the instrumented build."""

import os
from pathlib import Path

import pytest

from softmaxloss import _native


def test_the_instrumented_build_is_the_one_under_test():
    folder = os.environ.get("SOFTMAXLOSS_SANITIZED")
    if folder is None:
        pytest.skip("not a run under sanitizers")
    assert Path(_native.__file__).is_relative_to(folder)
    assert "libasan" in Path("/proc/self/maps").read_text()
