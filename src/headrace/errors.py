"""The errors that headrace raises on purpose.

A caller who catches ``HeadraceError`` catches them all::

    HeadraceError
    ├── ConfigurationError
    │   └── ContextLengthError
    ├── MemoryBudgetError
    ├── ModelError
    │   └── UnsupportedModelError
    └── ProfileError

Each message says what was given, what is allowed, and which setting to change.
"""


class HeadraceError(Exception):
    """Base of every error that headrace raises on purpose."""


class ConfigurationError(HeadraceError, ValueError):
    """A setting is off.

    The message names the setting, what was given, what is allowed, and what to change.
    """


class ContextLengthError(ConfigurationError):
    """A prompt, with the tokens asked for, is longer than the model's context."""


class MemoryBudgetError(HeadraceError):
    """The work does not fit the memory of the device or of the host."""


class ModelError(HeadraceError):
    """A model cannot be loaded or served."""


class UnsupportedModelError(ModelError):
    """The model is of a kind that headrace does not serve."""


class ProfileError(HeadraceError):
    """A hardware profile is missing, damaged, or of an unknown name."""
