"""Every module imports, the examples in its docstrings hold, and every public name comes with an example."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import softmaxloss

# The names with an underscore are private: the native module, and __main__, whose import starts the command.
# A package that cannot be imported is listed (onerror), so that its own test below says why.
FOUND = pkgutil.walk_packages(softmaxloss.__path__, "softmaxloss.", onerror=lambda name: None)
MODULES = ["softmaxloss", *sorted(info.name for info in FOUND if "._" not in info.name)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    module = importlib.import_module(name)

    assert module.__doc__, f"{name} does not say what it is for"
    assert doctest.testmod(module).failed == 0  # testmod prints each failure; pytest shows it


@pytest.mark.parametrize("name", softmaxloss.__all__)
def test_a_public_name_is_documented_with_an_example(name):
    thing = getattr(softmaxloss, name)
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        pytest.skip("a value has no docstring of its own")

    # Not inspect.getdoc, which would take the words of a base class for the class's own.
    text = inspect.cleandoc(thing.__doc__ or "")
    _, heading, examples = text.partition("\nExamples\n--------\n")

    assert text, f"softmaxloss.{name} has no docstring"
    assert heading, f"softmaxloss.{name} has no Examples section"
    assert ">>> " in examples, f"the Examples section of softmaxloss.{name} holds no example"
    assert thing.__module__ in MODULES, f"no test runs the example of softmaxloss.{name}"


def test_a_wrong_example_would_be_seen():
    module = type(softmaxloss)("wrong", "A module whose example is wrong.\n\n>>> 1 + 1\n3\n")

    assert doctest.testmod(module).failed == 1
