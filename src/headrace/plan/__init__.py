"""Deciding how each part of the cache is brought to bear. Imports no torch."""
