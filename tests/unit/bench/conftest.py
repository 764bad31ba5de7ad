from tests.fixtures import quiet

__all__ = ["quiet"]
