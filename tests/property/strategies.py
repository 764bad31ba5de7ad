"""Random machines, models and programs for the property tests."""

import math
from dataclasses import dataclass

from hypothesis import strategies as st

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind, Program
from headrace.plan.policies import LayerTimes, Policy, Split
from headrace.plan.schedule import build_program, layer_granules, order_granules
from headrace.timeline import Origin


def log_uniform(low, high):
    """Any number between two, each order of magnitude as likely as the next."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


@st.composite
def profiles(draw):
    device = draw(st.one_of(st.just(math.inf), log_uniform(1e10, 1e13)))
    return HardwareProfile(
        name="random",
        origin=Origin.PREDICTED,
        device="cuda",
        h2d_bytes_per_s=draw(log_uniform(1e8, 1e12)),
        d2h_bytes_per_s=draw(log_uniform(1e8, 1e12)),
        gemm_flops_per_s={"bfloat16": draw(log_uniform(1e11, 1e16))},
        device_bytes_per_s=device,
        host_bytes_per_s=1e11,
        device_memory_bytes=2**35,
        host_memory_bytes=2**40,
        copy_latency_s=draw(st.sampled_from([0.0, 1e-6, 1e-4])),
        launch_latency_s=draw(st.sampled_from([0.0, 1e-6, 1e-4])),
    )


@st.composite
def layer_times(draw):
    """Times of one layer, over many orders of magnitude; other work on the device in half."""
    kv_bytes = draw(log_uniform(1e2, 1e5))
    others = st.one_of(st.just(0.0), log_uniform(1e-9, 1e-3))
    link = draw(log_uniform(1e8, 1e12))
    return LayerTimes(
        stream_link_s=kv_bytes / link,
        recompute_link_s=kv_bytes * draw(st.floats(0.05, 3)) / link,
        rebuild_gpu_s=draw(log_uniform(1e4, 1e10)) / draw(log_uniform(1e11, 1e16)),
        attend_gpu_s=draw(others),
        fixed_gpu_s=draw(others),
    )


@st.composite
def splits(draw):
    parts = [draw(st.integers(0, 10)) for _ in range(3)]
    total = sum(parts)
    if total == 0:
        return Split(stream=1.0)
    resident, recompute = parts[0] / total, parts[1] / total
    return Split(resident, max(0.0, 1 - resident - recompute), recompute)


@dataclass(frozen=True)
class Case:
    """A program, with what it was built from."""

    program: Program
    policy: Policy


@st.composite
def shapes(draw):
    heads, kv_heads = draw(st.sampled_from([(4, 4), (8, 2), (8, 8), (16, 1)]))
    return ModelShape(
        name="random",
        num_layers=draw(st.integers(1, 3)),
        d_model=draw(st.sampled_from([64, 512, 4096])),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 128])),
        d_ff=1024,
        gated_ff=draw(st.booleans()),
        vocab_size=1000,
        tied_embeddings=True,
        max_context=2**20,
    )


@st.composite
def cases(draw):
    """Programs of few layers, some of them windowed, under every policy."""
    shape = draw(shapes())
    rows = draw(st.integers(1, 6))
    context = draw(st.integers(100, 3000))
    geometry = Geometry(
        draw(st.sampled_from([16, 64])),
        draw(st.sampled_from([2**14, 2**18, 2**22])),
        draw(st.integers(3, 12)),
    )
    policy = draw(st.sampled_from([Policy.STREAM, Policy.KVPR, Policy.RECOMPUTE]))
    granules = layer_granules(draw(splits()), geometry, rows, context, shape)
    # Each layer is a simulation's cost: few granules are enough to wait for each other.
    ordered = order_granules(granules[:14] + granules[-6:], policy)
    layers = [ordered if draw(st.integers(0, 3)) else () for _ in range(shape.num_layers)]
    stores = draw(st.sampled_from([None, [((Kind.STORE_KV, 4096),)] * shape.num_layers]))
    program = build_program(shape, layers, rows, 1, geometry.ring_slots, policy, stores)
    return Case(program, policy)
