"""Looks up the settings of a ``config.json``, under the names that model types give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import UnsupportedModelError


class Settings:
    """A configuration's settings.

    Args:
        config: what the file holds.
        name: what the model is called in errors.
    """

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self.name = name
        self.type = str(config.get("model_type", ""))
        self._config = config

    def get(self, setting: str) -> Any:
        """Return what is given, or None."""
        return self._config.get(setting)

    def first(self, settings: Sequence[str]) -> str | None:
        """Return the first of some settings that is given; None if none is."""
        return next((one for one in settings if self._config.get(one) is not None), None)

    def whole(self, settings: Sequence[str], default: int | None = None, least: int = 1) -> int:
        """Return the first of some settings that is given, as a whole number.

        Args:
            settings: their names.
            default: what holds if none is given; None: one must be.
            least: the least that is allowed.

        Raises:
            UnsupportedModelError: it is no such number, or there is none.
        """
        setting = self.first(settings)
        if setting is None:
            if default is None:
                raise self.error(f"does not give {' or '.join(settings)}")
            return default
        value = self._config[setting]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(f"has {setting} = {value!r}; allowed are whole numbers from {least}")
        return value

    def error(self, what: str) -> UnsupportedModelError:
        """Return an error that says of which model it is."""
        kind = f"model_type {self.type!r}" if self.type else "no model_type"
        return UnsupportedModelError(f"the configuration of {self.name} ({kind}) {what}")
