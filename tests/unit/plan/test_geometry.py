from dataclasses import replace

import pytest

from headrace.errors import ConfigurationError
from headrace.model.published import published_shape
from headrace.plan.geometry import Geometry, choose_geometry
from headrace.plan.policies import Policy, Split, recompute_split, stream_split

OPT = published_shape("opt-6.7b")
KAPPA = 16384
MIB = 2**20


@pytest.mark.parametrize(
    ("tokens", "granule_bytes", "slots", "named"),
    [
        (8, MIB, 4, "block_tokens"),
        (48, MIB, 4, "block_tokens"),
        (512, MIB, 4, "block_tokens"),
        (64, 0, 4, "granule_bytes"),
        (64, MIB, 2, "ring_slots"),
    ],
)
def test_values_are_validated(tokens, granule_bytes, slots, named):
    with pytest.raises(ConfigurationError, match=named):
        Geometry(tokens, granule_bytes, slots)


def test_sizes():
    geometry = Geometry(64, 4 * 64 * KAPPA, 4)
    assert geometry.pages_per_granule(KAPPA) == 4
    assert geometry.pages_per_granule(KAPPA // 2) == 8
    assert geometry.workspace_bytes(OPT) == 3 * 8 * 64 * KAPPA
    assert geometry.tail_bytes(OPT, rows=3) == 3 * 64 * KAPPA * 32
    assert [geometry.paged_tokens(n) for n in (0, 127, 128, 191, 192)] == [0, 64, 128, 128, 192]


@pytest.mark.parametrize(("context", "tokens"), [(100, 16), (1000, 32), (1024, 64), (2048, 64)])
def test_pages_are_smaller_where_the_tail_would_be_large(context, tokens):
    assert choose_geometry(OPT, 8, context, stream_split()).block_tokens == tokens


def test_granules_are_a_64th_of_a_step_up_to_64_mib_and_a_layer():
    assert choose_geometry(OPT, 64, 2048, stream_split()).granule_bytes == 64 * MIB
    middling = choose_geometry(OPT, 1, 2048, stream_split())
    assert 32 * 2048 * KAPPA / middling.granule_bytes == pytest.approx(64, rel=0.1)
    small = choose_geometry(replace(OPT, num_layers=400), 1, 128, stream_split())
    assert small.granule_bytes == 128 * KAPPA


def test_the_paper_schedule_has_eight_granules_a_layer_and_at_least_four():
    middling = choose_geometry(OPT, 8, 2048, stream_split(), policy=Policy.KVPR)
    assert 8 * 2048 * KAPPA / middling.granule_bytes == pytest.approx(8, rel=0.1)
    small = choose_geometry(OPT, 1, 128, stream_split(), policy=Policy.KVPR)
    assert small.granule_bytes == 128 * KAPPA // 4


def test_under_a_budget_staging_shrinks():
    free = choose_geometry(OPT, 64, 2048, recompute_split(0.7))
    budget = 600 * MIB + free.tail_bytes(OPT, 64) // 2
    tight = choose_geometry(OPT, 64, 2048, recompute_split(0.7), budget)
    assert tight.granule_bytes < free.granule_bytes
    staged = tight.ring_bytes + tight.workspace_bytes(OPT) + tight.tail_bytes(OPT, 64)
    assert staged <= budget


def test_the_smallest_geometry_is_the_answer_to_no_budget():
    geometry = choose_geometry(OPT, 64, 2048, stream_split(), 0)
    assert (geometry.block_tokens, geometry.ring_slots) == (16, 3)


def test_the_paper_stages_all_x_of_a_layer():
    split = recompute_split(0.7)
    geometry = choose_geometry(OPT, 64, 2048, split, policy=Policy.KVPR)
    x_pages = 64 * round(0.7 * geometry.paged_tokens(2048) / geometry.block_tokens)
    x_bytes = x_pages * geometry.block_tokens * KAPPA / 2
    assert (geometry.ring_slots - 8) * geometry.granule_bytes >= x_bytes
    unsplit = choose_geometry(OPT, 64, 2048, stream_split(), policy=Policy.KVPR)
    assert unsplit.ring_slots == 8


def test_all_resident_stages_nothing():
    geometry = choose_geometry(OPT, 64, 2048, Split(resident=1.0))
    assert geometry.granule_bytes == geometry.block_tokens * KAPPA
