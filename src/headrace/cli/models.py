"""From the MODEL of a command line to its shape, without torch and without weights."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from headrace.errors import ModelError
from headrace.model.config import from_config
from headrace.model.published import PUBLISHED, published_names, published_shape
from headrace.model.shape import ModelShape

DEMO = "demo"
"""The name of the model that comes with the package."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def demo_directory() -> Path:
    """Return the folder of the model that comes with the package."""
    return Path(str(files("headrace").joinpath("assets", "demo")))


def resolve_shape(model: str, dtype: str | None = None) -> ModelShape:
    """Return the shape of a model.

    Args:
        model: ``demo``, a directory with ``config.json``, a published shape's name, or a hub id;
            of a hub id only ``config.json`` is fetched, where it is not cached.
        dtype: element type to use instead of the model's own.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
        UnsupportedModelError: the model is of a kind that headrace does not serve.
    """
    shape = _shape(model)
    return shape if dtype is None else replace(shape, dtype=dtype)


def _shape(model: str) -> ModelShape:
    if model == DEMO:
        return _from_file(demo_directory() / "config.json", DEMO)
    if Path(model).is_dir():
        return _from_file(Path(model) / "config.json", model)
    if Path(model).is_file():
        raise ModelError(
            f"MODEL is {model!r}, which is a file; give the directory that holds config.json"
        )
    if model in PUBLISHED:
        return published_shape(model)
    if _HUB_ID.fullmatch(model):
        return _from_file(_hub_config(model), model)
    close = difflib.get_close_matches(model.lower(), (*published_names(), DEMO), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ModelError(
        f"MODEL is {model!r}{hint}, which is neither a directory nor a known name; {_allowed()}"
    )


def _allowed() -> str:
    return (
        "give a directory with config.json, a hub id (owner/name), "
        f"{DEMO}, or one of {', '.join(published_names())}"
    )


def _from_file(path: Path, name: str) -> ModelShape:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        problem = error.strerror or error
        raise ModelError(
            f"MODEL is {name!r}, but {path} cannot be read ({problem}); {_allowed()}"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON (damaged or cut off?): {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no model's configuration: it holds no JSON object")
    return from_config(config, name)


def _hub_config(model: str) -> Path:
    """Return where the hub's ``config.json`` of a model is, fetched if it is not cached."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (OSError, ValueError) as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"MODEL is {model!r}, which is no directory here, and as a hub id its config.json "
            f"could not be had ({cause.strip()}); {_allowed()}"
        ) from error
