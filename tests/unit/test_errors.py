import inspect

import pytest

from headrace import errors
from headrace.errors import ConfigurationError, ContextLengthError, HeadraceError


def error_classes():
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]


def drawn_parents(docstring):
    """Map each class in the drawn tree to the class that it hangs from."""
    parents = {}
    branch = []
    for line in docstring.splitlines():
        name = line.lstrip(" │├└─")
        if not name.endswith("Error"):
            continue
        if not branch:
            margin = line.index(name)
        depth = (line.index(name) - margin) // 4
        del branch[depth:]
        parents[name] = branch[-1] if branch else None
        branch.append(name)
    return parents


def test_the_drawn_tree_is_the_real_one():
    real_parents = {
        error.__name__: None if error is HeadraceError else error.__base__.__name__
        for error in error_classes()
    }

    assert drawn_parents(errors.__doc__) == real_parents


@pytest.mark.parametrize("error", error_classes())
def test_every_error_is_caught_as_a_headrace_error_and_is_documented(error):
    assert issubclass(error, HeadraceError)
    assert inspect.getdoc(error)
    assert str(error("what was given")) == "what was given"


def test_a_setting_that_is_off_is_a_value_error():
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ContextLengthError, ConfigurationError)
