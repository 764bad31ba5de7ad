"""Shapes that several tests plan for."""

from dataclasses import replace

from headrace.model.published import published_shape

SMALL = replace(
    published_shape("opt-6.7b"),
    num_layers=4,
    d_model=256,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    d_ff=1024,
    vocab_size=512,
)
"""Few layers, and narrow: launches count beside the work."""
