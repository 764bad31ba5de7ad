from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.strategies import cases, shapes, splits

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.geometry import Geometry, choose_geometry, granule_sizes
from headrace.plan.operations import Kind
from headrace.plan.policies import Policy
from headrace.plan.schedule import GranuleSpec, layer_granules, order_granules

LOADS = (Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV)


@given(
    shape=shapes(),
    split=splits(),
    rows=st.integers(1, 20),
    context=st.integers(0, 5000),
    block=st.sampled_from([16, 64, 256]),
    granule_bytes=st.integers(1, 2**24),
)
def test_granules_are_the_pages_and_fit_their_slots(
    shape, split, rows, context, block, granule_bytes
):
    geometry = Geometry(block, granule_bytes)
    granules = layer_granules(split, geometry, rows, context, shape)
    tokens = sum(granule.tokens for granule in granules)
    in_pages = context if split.resident == 1 else geometry.paged_tokens(context)
    assert tokens == rows * in_pages
    token_bytes = {
        "activations": activation_bytes_per_token(shape),
        "kv": kv_bytes_per_token(shape),
    }
    for granule in granules:
        assert granule.pages > 0
        if granule.kind == "resident":
            assert granule.link_bytes == 0
            continue
        assert granule.tokens == granule.pages * block
        assert granule.link_bytes == granule.tokens * token_bytes[granule.kind]
        assert granule.link_bytes <= granule_bytes or granule.pages == 1


@given(pages=st.integers(0, 1000), most=st.integers(1, 100))
def test_pages_are_divided_evenly_over_the_fewest_granules(pages, most):
    sizes = granule_sizes(pages, most)
    assert sum(sizes) == pages
    assert len(sizes) == -(-pages // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)


@given(x=st.integers(0, 40), kv=st.integers(0, 40), resident=st.integers(0, 2))
def test_order_keeps_all_granules_and_interleaves_evenly(x, kv, resident):
    specs = [
        GranuleSpec(kind, number + 1, 16, 0)
        for kind, count in (("resident", resident), ("activations", x), ("kv", kv))
        for number in range(count)
    ]
    ordered = order_granules(specs, Policy.RECOMPUTE)
    assert Counter(ordered) == Counter(specs)
    assert [spec.kind for spec in ordered[:resident]] == ["resident"] * resident
    taken = 0
    for position, spec in enumerate(ordered[resident:], start=1):
        taken += spec.kind == "activations"
        assert 0 <= taken - position * x / (x + kv) < 1
    kinds = [spec.kind for spec in order_granules(specs, Policy.KVPR)]
    assert kinds == ["resident"] * resident + ["activations"] * x + ["kv"] * kv


@given(case=cases())
@settings(max_examples=100)
def test_a_program_is_complete_and_waits_only_for_what_comes_before(case):
    operations = case.program.operations
    assert [op.index for op in operations] == list(range(len(operations)))
    assert all(index < op.index for op in operations for index in op.waits_for)
    loads = [op for op in operations if op.kind in LOADS]
    assert [op.load_number for op in loads] == list(range(len(loads)))
    readers = [op for op in operations if op.kind not in LOADS and op.load_number >= 0]
    assert [op.load_number for op in readers] == [op.load_number for op in loads]
    for load, reader in zip(loads, readers, strict=True):
        assert (reader.layer, reader.granule) == (load.layer, load.granule)
        assert any(operations[i].load_number >= load.load_number for i in reader.waits_for)
    assert operations[-1].layer == case.program.num_layers
    for layer in range(case.program.num_layers):
        kinds = [op.kind for op in case.program.compute[layer]]
        assert kinds[0] is Kind.DENSE
        assert kinds[-1] is Kind.MERGE
        assert kinds.pop(-2 if case.policy is Policy.KVPR else 1) is Kind.ATTEND_NEW
        assert set(kinds[1:-1]) <= {Kind.REBUILD, Kind.ATTEND}


@given(
    shape=shapes(),
    split=splits(),
    rows=st.integers(1, 100),
    context=st.integers(0, 100_000),
    budget=st.one_of(st.none(), st.integers(0, 2**34)),
    policy=st.sampled_from([Policy.STREAM, Policy.KVPR, Policy.RECOMPUTE]),
)
def test_a_geometry_fits_its_budget_or_is_small(shape, split, rows, context, budget, policy):
    geometry = choose_geometry(shape, rows, context, split, budget, policy=policy)
    page_bytes = geometry.block_tokens * kv_bytes_per_token(shape)
    x_page_bytes = geometry.block_tokens * activation_bytes_per_token(shape)
    assert geometry.granule_bytes % page_bytes == 0 or geometry.granule_bytes % x_page_bytes == 0
    assert geometry.granule_bytes <= max(2**26, page_bytes, x_page_bytes)
    assert geometry.ring_slots >= 3
    staged = geometry.ring_bytes + geometry.tail_bytes(shape, rows)
    if split.recompute > 0:
        staged += geometry.workspace_bytes(shape)
    if budget is not None and staged > budget:
        assert geometry.block_tokens == 16
        assert geometry.ring_slots == 3 or policy is Policy.KVPR
