"""The seams to `transformers`: a cache, an attention function, and hooks."""
