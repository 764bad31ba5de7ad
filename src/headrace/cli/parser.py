"""The argument parser that all commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    # argparse has no other names for what ``add_subparsers`` returns, and for parser or group.
    Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
    Options: TypeAlias = argparse._ActionsContainer


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are headrace's: one line, no usage in front of it.

    Options cannot be abbreviated, so that a new option never changes what an old command means.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise a ``ConfigurationError`` that says where the help is."""
        raise ConfigurationError(f"{message}; see `{self.prog} --help`")
