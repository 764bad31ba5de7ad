"""Which share of a prompt is on which path: what the cache says, and what a step does."""

import pytest
import torch
from tests.support import host_cache, make_batch

from headrace import LLM, SamplingParams
from headrace.engine.loading import LoadedModel, load_model
from headrace.hf.weights import PlacedWeights
from headrace.plan.operations import Kind
from headrace.runtime.cpu_lanes import CpuBackend

MACHINE = "a100-40gb-pcie4"

WAYS = [
    ("resident", None, {}),
    ("stream", None, {}),
    ("kvpr", 0.5, {}),
    ("recompute", 1.0, {}),
    ("host", None, {}),
    ("auto", 0.3, {"host_fraction": 0.25}),
    ("auto", None, {"host_fraction": 0.6}),
    ("auto", None, {"profile": MACHINE}),
    ("kvpr", None, {"profile": MACHINE}),
    ("host", None, {"profile": MACHINE}),
]


@pytest.fixture(scope="module")
def demo():
    return load_model("demo", device="cpu", dtype="float32")


def fractions_of(cache):
    """Return the shares: on the device, streamed, rebuilt, attended to by the host."""
    names = ("resident", "stream", "recompute", "host")
    return [getattr(cache, f"{name}_fraction") for name in names]


def tokens_by_path(program):
    """Return how many cached tokens a step has on each path, in its first layer."""
    kinds = {}
    for operation in program.operations:
        if operation.layer == 0:
            kinds[operation.kind] = kinds.get(operation.kind, 0) + operation.tokens
    found = [kinds.get(kind, 0) for kind in (Kind.LOAD_KV, Kind.REBUILD, Kind.HOST_ATTEND)]
    return [kinds.get(Kind.ATTEND, 0) - found[0] - found[1], *found]


@pytest.mark.parametrize(("policy", "recompute", "options"), WAYS)
def test_the_four_shares_are_those_of_a_step_and_sum_to_1(demo, policy, recompute, options):
    batch = make_batch((960, 960))
    with host_cache(demo.model, policy, recompute, **options) as cache, torch.no_grad():
        assert fractions_of(cache) == [0.0] * 4
        demo.model(**batch.inputs, past_key_values=cache)
        fractions = fractions_of(cache)
        assert sum(fractions) == pytest.approx(1.0, abs=1e-9)
        assert all(0.0 <= fraction <= 1.0 for fraction in fractions)
        tokens = tokens_by_path(cache.paged.decode_program())
        if policy != "resident":
            shares = [count / (2 * 960) for count in tokens]
            # The newest tokens, less than a page of each row, are on the device besides.
            assert shares[1:] == pytest.approx(fractions[1:], abs=0.07)
    for given, place in ((recompute, 2), (options.get("host_fraction"), 3)):
        if given is not None:
            assert fractions[place] == pytest.approx(given)


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_mixture_has_shares_on_several_paths(demo, kept):
    batch = make_batch((960, 960, 960, 960))
    with host_cache(demo.model, "resident", None, profile=MACHINE) as cache, torch.no_grad():
        demo.model(**batch.inputs, past_key_values=cache)
        whole = cache.plan
    budget = int(whole.gpu_bytes - (1 - kept) * whole.gpu_items["resident_kv"])
    options = {"profile": MACHINE, "gpu_memory": budget}
    with host_cache(demo.model, "auto", None, **options) as cache, torch.no_grad():
        demo.model(**batch.inputs, past_key_values=cache)
        fractions = fractions_of(cache)
        tokens = tokens_by_path(cache.paged.decode_program())
    assert sum(fractions) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < fractions[0] < 1.0
    assert [count / (4 * 960) for count in tokens] == pytest.approx(fractions, abs=0.07)


def test_a_part_of_the_weights_is_streamed_and_the_stats_say_so():
    loaded = load_model("demo", device="cpu", dtype="float32")
    backend = CpuBackend()
    weights = PlacedWeights(loaded.model, backend, 0.6)
    llm = LLM(LoadedModel("demo", loaded.model, loaded.tokenizer), policy="stream")
    llm.generate("import", SamplingParams(max_tokens=2))
    stats = llm.stats
    assert 0.6 <= stats.weights_stream_fraction == weights.share < 1.0
    assert fractions_of(stats) == [0.0, 1.0, 0.0, 0.0]
    with host_cache(loaded.model, "stream", None) as cache:
        assert cache.weights_stream_fraction == weights.share
    backend.close()


def test_without_streamed_weights_their_share_is_0(demo):
    with host_cache(demo.model, "stream", None) as cache:
        assert cache.weights_stream_fraction == 0.0
