"""Where the input embedding is kept.

A step reads a row of its table for each of its tokens: some kilobytes of the gigabyte or two that
large vocabularies take. The device can read them from the host's memory as it goes. Where its own
memory does not hold everything, the table's part of it is worth more to the cache, or to weights
that are read as a whole. A table that is the head's as well is read as a whole, and stays.
"""

from __future__ import annotations

from dataclasses import replace

from headrace.model.shape import ModelShape
from headrace.plan.prompt_parts import everything_fits
from headrace.plan.workload import Workload


def belongs_on_host(shape: ModelShape, workload: Workload, budget_bytes: float) -> bool:
    """Return whether the embedding is better kept on the host.

    Args:
        shape: the model.
        workload: the batch.
        budget_bytes: device memory that may be used.
    """
    if shape.tied_embeddings:
        return False
    on_device = replace(shape, embedding_on_host=False)
    return not everything_fits(on_device, workload, budget_bytes)
