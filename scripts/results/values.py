"""Values of a result's JSON by expressions, such as ``policies[auto].step_s``.

A name is a field of the file, ``.name`` a field of what precedes it; of a list it is that of each
entry. ``[0]`` is an entry by its place, ``[auto]`` or ``['opt-6.7b']`` the entries of a list one of
whose fields is that text, or a field of an object by its name. Numbers, ``+ - * /``, parentheses,
``abs``, ``max``, ``min``, ``median``, ``sum`` and ``len`` are understood, and nothing else.
"""

from __future__ import annotations

import ast
import operator
import statistics
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "abs": lambda value: _each(abs, value),
    "max": max,
    "min": min,
    "median": statistics.median,
    "sum": sum,
    "len": len,
}


class ValueNotFoundError(ValueError):
    """An expression has no value in a file; the message says at which part."""


def number_of(expression: str, data: Any) -> float:
    """Return the number that an expression has in a file.

    Args:
        expression: see the module.
        data: what the file holds.

    Raises:
        ValueNotFoundError: it is not an expression, or not a number.
    """
    found = value_of(expression, data)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueNotFoundError(f"{expression} is {_shown(found)}, which is no number")
    return float(found)


def value_of(expression: str, data: Any) -> Any:
    """Return whatever an expression has in a file; see ``number_of``."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        raise ValueNotFoundError(f"{expression!r} is not an expression") from None
    return _value(tree.body, data)


def _value(node: ast.expr, data: Any) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return _field(data, name)
        case ast.Attribute(value=inner, attr=name):
            return _field(_value(inner, data), name)
        case ast.Subscript(value=inner, slice=key):
            return _entry(_value(inner, data), _key(key))
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_value(left, data), _value(right, data))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, data)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
            values = [_value(one, data) for one in arguments]
            return _FUNCTIONS[name](*values)
    raise ValueNotFoundError(f"{ast.unparse(node)!r} is not understood in an expression")


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    return [function(one) for one in value] if isinstance(value, list) else function(value)


def _key(node: ast.expr) -> str | int:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str() | int() as key):
            return key
    raise ValueNotFoundError(f"[{ast.unparse(node)}] is neither a name, a quoted text nor a place")


def _field(value: Any, name: str) -> Any:
    if isinstance(value, list):
        found = [_field(one, name) for one in value]
        return [part for one in found for part in (one if isinstance(one, list) else [one])]
    if not isinstance(value, dict) or name not in value:
        raise ValueNotFoundError(f"there is no field {name!r} in {_shown(value)}")
    return value[name]


def _entry(value: Any, key: str | int) -> Any:
    if isinstance(value, dict):
        return _field(value, str(key))
    if not isinstance(value, list):
        raise ValueNotFoundError(f"[{key}] is asked of {_shown(value)}, which has no entries")
    if isinstance(key, int):
        if key >= len(value):
            raise ValueNotFoundError(f"there is no entry {key} among {len(value)}")
        return value[key]
    found = [one for one in value if isinstance(one, dict) and key in one.values()]
    if not found:
        raise ValueNotFoundError(f"no entry has {key!r} as one of its fields")
    return found[0] if len(found) == 1 else found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(value)}"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
