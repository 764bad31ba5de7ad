"""As the engine's tests: no bars."""

from tests.unit.engine.conftest import quiet

__all__ = ["quiet"]
