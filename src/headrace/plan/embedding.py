"""Where the input embedding is kept.

A step reads a row of its table for each of its tokens: some kilobytes of the gigabyte or two that
large vocabularies take. The device can read them from the host's memory as it goes. Where its own
memory does not hold everything, the table's part of it is worth more to the cache, or to weights
that are read as a whole. A table that is the head's as well is read as a whole, and stays; and so
does one that would take much of the host's memory.
"""

from __future__ import annotations

from dataclasses import replace

from headrace.errors import ConfigurationError
from headrace.model.cost import embedding_bytes
from headrace.model.shape import ModelShape
from headrace.plan.options import PlanOptions
from headrace.plan.prompt_parts import everything_fits
from headrace.plan.workload import Workload

_HOST_SHARE = 1 / 8
"""Most of the host's budget that the table may take."""


def belongs_on_host(
    shape: ModelShape, workload: Workload, gpu_bytes: float, host_bytes: float
) -> bool:
    """Return whether the embedding is better kept on the host.

    Args:
        shape: the model.
        workload: the batch.
        gpu_bytes: device memory that may be used.
        host_bytes: host memory that may be used.
    """
    if shape.tied_embeddings or embedding_bytes(shape) > _HOST_SHARE * host_bytes:
        return False
    on_device = replace(shape, embedding_on_host=False)
    return not everything_fits(on_device, workload, gpu_bytes)


def with_embedding_placed(
    shape: ModelShape,
    workload: Workload,
    options: PlanOptions,
    gpu_bytes: float,
    host_bytes: float,
) -> ModelShape:
    """Return a model's shape with its embedding where it is, is asked to be, or belongs.

    Args:
        shape: the model; where it says that the embedding is on the host, it stays there.
        workload: the batch.
        options: how to plan.
        gpu_bytes: device memory that may be used.
        host_bytes: host memory that may be used.

    Raises:
        ConfigurationError: it is asked to be on the host, and the head reads it as a whole.
    """
    on_host = options.embedding_on_host
    if on_host and shape.tied_embeddings:
        raise ConfigurationError(
            f"embedding_on_host is True, but the head of {shape.name} reads the embedding's table "
            "as a whole; leave embedding_on_host out"
        )
    if on_host is None:
        on_host = shape.embedding_on_host or (
            options.stream_weights and belongs_on_host(shape, workload, gpu_bytes, host_bytes)
        )
    return replace(shape, embedding_on_host=on_host)
