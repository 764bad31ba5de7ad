"""Hardware profiles as JSON files: written whole or not at all, checked when read."""

from __future__ import annotations

import json
import math
import os
import tempfile
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from headrace.errors import ProfileError
from headrace.hardware.profile import HardwareProfile

SCHEMA_VERSION = 6
"""Raised when a field is added or changes its meaning."""

READ_VERSIONS = (1, 2, 3, 4, 5, 6)
"""Files of other versions are not read.

1 has no rates of the host's attention beside the link, 2 none of dense work by rows, 3 nothing of
what short pages take, nor of attention to contiguous rows, 4 nothing of the way of queries
and results, 5 nothing of what launching takes in steps.
"""


def profile_to_json(profile: HardwareProfile) -> dict[str, Any]:
    """Return a JSON-compatible dictionary that ``profile_from_json`` reads back.

    A rate without limit is written as the string ``inf``, since JSON has no infinity.
    """
    data = _plain(asdict(profile))
    assert isinstance(data, dict)
    return {"schema_version": SCHEMA_VERSION, **data}


def profile_from_json(data: Any) -> HardwareProfile:
    """Return the profile that ``profile_to_json`` wrote.

    Raises:
        ProfileError: ``data`` is no such profile; the message says where.
    """
    if not isinstance(data, dict):
        raise ProfileError(f"not a profile: expected an object, found {_kind(data)}")
    version = data.get("schema_version")
    if version not in READ_VERSIONS:
        readable = " and ".join(map(str, READ_VERSIONS))
        raise ProfileError(f"schema_version is {version!r}; this headrace reads {readable}")
    body = {name: value for name, value in data.items() if name != "schema_version"}
    profile = _read(HardwareProfile, body, "profile")
    assert isinstance(profile, HardwareProfile)
    return profile


def save_profile(profile: HardwareProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile as JSON, whole or not at all; parent folders are made.

    Raises:
        ProfileError: the file cannot be written.
    """
    target = Path(path)
    text = json.dumps(profile_to_json(profile), indent=2, allow_nan=False) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ProfileError(
            f"cannot write the profile {target}: {error.strerror or error}; choose another place "
            "with `headrace profile --output FILE` or with HEADRACE_CACHE"
        ) from error


def load_profile(path: str | os.PathLike[str]) -> HardwareProfile:
    """Read a profile that ``save_profile`` wrote.

    Raises:
        ProfileError: the file cannot be read or is no profile; one line says which file, what is
            wrong, and what to do.
    """
    try:
        return profile_from_json(json.loads(Path(path).read_bytes()))
    except OSError as error:
        problem: str = error.strerror or str(error)
    except RecursionError:
        problem = "not JSON: nested too deeply"
    except ValueError as error:
        problem = f"not JSON (damaged or cut off?): {error}"
    except ProfileError as error:
        problem = str(error)
    raise ProfileError(
        f"cannot use the hardware profile {path}: {problem}; "
        f"run `headrace profile --output {path}` to measure it again"
    )


def _plain(value: Any) -> Any:
    """Return ``value`` with an infinite number as the string ``inf``."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "inf" if value == math.inf else value


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return ``value``, as JSON gave it, as an object of the type ``hint``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(get_args(hint)[0], value, where)
    if origin is tuple:
        return _read_tuple(get_args(hint), _expect(list, value, where), where)
    if origin is not None and issubclass(origin, Mapping):
        items = _expect(dict, value, where).items()
        return {key: _read(get_args(hint)[1], item, f"{where}.{key}") for key, item in items}
    if is_dataclass(hint):
        return _read_dataclass(hint, _expect(dict, value, where), where)
    if issubclass(hint, StrEnum):
        if value not in list(hint):
            raise ProfileError(f"{where} is {value!r}; allowed are {', '.join(hint)}")
        return hint(value)
    if hint is float:
        number = math.inf if value == "inf" else _expect(int | float, value, where)
        return float(number)
    return _expect(hint, value, where)


def _read_tuple(hints: tuple[Any, ...], values: list[Any], where: str) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        return tuple(_read(hints[0], item, f"{where}[{i}]") for i, item in enumerate(values))
    if len(values) != len(hints):
        raise ProfileError(f"{where} has {len(values)} values; expected {len(hints)}")
    pairs = zip(hints, values, strict=True)
    return tuple(_read(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs))


def _read_dataclass(cls: Any, data: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
    missing = [name for name in required if name not in data]
    if unknown or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ProfileError(f"{where} {lacks}")
    return cls(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _expect(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = getattr(kind, "__name__", "number")
        raise ProfileError(f"{where} is {_kind(value)}; expected {expected}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:60]
