"""The fixtures of the engine's tests: one thread, no bars, no stored profile, an emulated link."""

from tests.unit.engine.conftest import emulated, no_stored_profile, one_thread, quiet

__all__ = ["emulated", "no_stored_profile", "one_thread", "quiet"]
