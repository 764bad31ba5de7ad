"""Plans for mixtures of experts: what a step reads of the weights depends on its rows."""

from dataclasses import replace

import pytest

from headrace.errors import ConfigurationError
from headrace.hardware.catalog import machine
from headrace.model.cost import (
    all_layers_weight_bytes,
    head_weight_bytes,
    layer_read_bytes,
    model_weight_bytes,
)
from headrace.model.published import published_shape
from headrace.plan.operations import Kind
from headrace.plan.parallel import shard
from headrace.plan.plan import make_plan, plan_program
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload

MIXTURE = published_shape("qwen3-30b-a3b")
H200 = machine("h200-141gb-pcie5")


def planned(rows, policy=Policy.RESIDENT, **options):
    return make_plan(MIXTURE, Workload(rows, 256, 16), H200, policy=policy, **options)


def test_a_row_reads_its_experts_and_many_rows_all():
    one, many = planned(1), planned(256)
    head = head_weight_bytes(MIXTURE)
    taken = MIXTURE.num_layers * layer_read_bytes(MIXTURE, 1) + head
    everything = all_layers_weight_bytes(MIXTURE) + head
    assert taken / H200.device_bytes_per_s <= one.bound_s < 1.2 * taken / H200.device_bytes_per_s
    assert 0.99 * everything / H200.device_bytes_per_s < many.bound_s
    assert everything > 8 * taken


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_the_simulated_step_reads_what_the_bound_counts(rows):
    plan = planned(rows)
    read = [
        op.memory_bytes
        for op in plan_program(plan, MIXTURE).operations
        if op.kind is Kind.DENSE and op.layer < MIXTURE.num_layers
    ]
    assert read == [layer_read_bytes(MIXTURE, rows)] * MIXTURE.num_layers
    assert plan.bound_s <= plan.step_s


def test_all_experts_take_memory_and_are_streamed():
    plan = planned(4, gpu_memory_bytes=30 * 2**30)
    assert plan.feasible
    brought = sum(
        op.link_bytes
        for op in plan_program(plan, MIXTURE).operations
        if op.kind is Kind.LOAD_WEIGHTS
    )
    needed = model_weight_bytes(MIXTURE) - 30 * 2**30
    assert brought >= needed
    assert brought == pytest.approx(
        plan.weights_streamed * all_layers_weight_bytes(MIXTURE), rel=1e-3
    )


def test_each_gpu_has_a_part_of_every_expert():
    part = shard(MIXTURE, 4)
    assert part.experts == replace(MIXTURE.experts, d_ff=MIXTURE.experts.d_ff // 4)
    with pytest.raises(ConfigurationError, match="a feed-forward width of 770 or 1536, which 4"):
        shard(replace(MIXTURE, d_ff=1536, experts=replace(MIXTURE.experts, d_ff=770)), 4)
