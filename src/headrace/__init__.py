"""Exact LLM inference with the KV cache in host memory.

The public names are loaded when first used, so that ``import headrace.plan`` needs no torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.engine.completion import Completed, Request
    from headrace.engine.llm import LLM
    from headrace.engine.request import SamplingParams
    from headrace.engine.streaming import StreamedText, TextStream
    from headrace.errors import HeadraceError
    from headrace.hf.cache import HostCache

__all__ = [
    "Completed",
    "HeadraceError",
    "HostCache",
    "LLM",
    "Request",
    "SamplingParams",
    "StreamedText",
    "TextStream",
    "__version__",
]

_HOME_OF = {
    "Completed": "headrace.engine.completion",
    "HeadraceError": "headrace.errors",
    "HostCache": "headrace.hf.cache",
    "LLM": "headrace.engine.llm",
    "Request": "headrace.engine.completion",
    "SamplingParams": "headrace.engine.request",
    "StreamedText": "headrace.engine.streaming",
    "TextStream": "headrace.engine.streaming",
}

try:
    __version__ = version("headrace")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"


def __dir__() -> list[str]:
    return sorted(__all__)


# Hidden from type checkers, for whom it would make every misspelt name a valid one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
