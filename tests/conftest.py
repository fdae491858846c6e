"""Fixtures that several test files share."""

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
