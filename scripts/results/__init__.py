"""The results page, and where the figures of the documentation come from."""
