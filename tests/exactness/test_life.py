"""A cache's life: reused, beside others, broken, closed; and the model is left as it was."""

import gc
import weakref

import pytest
import torch
from tests.support import (
    SPLITS,
    assert_same,
    generate,
    host_cache,
    make_batch,
    make_model,
    plain_cache,
    shared_model,
)
from transformers import LlamaConfig, LlamaForCausalLM

from headrace.errors import ConfigurationError, MemoryBudgetError, UnsupportedModelError
from headrace.hf.attention import NAME
from headrace.hf.cache import HostCache

KINDS = ("llama-gqa", "gemma2", "phi3", "gpt2", "opt")


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_a_cache_is_used_again_after_reset_with_another_batch_size(policy, fraction):
    model = shared_model("llama-gqa")
    with host_cache(model, policy, fraction) as cache:
        for lengths in ((50, 31), (20, 64, 33, 90), (70,)):
            batch = make_batch(lengths)
            assert_same(generate(model, batch, plain_cache(model)), generate(model, batch, cache))
            cache.reset()
            assert cache.get_seq_length() == 0


def test_two_caches_of_a_model_take_turns():
    model = shared_model("gemma2")
    first, second = make_batch((50, 31)), make_batch((20, 64, 33), seed=4)
    plain = [plain_cache(model), plain_cache(model)]
    with (
        host_cache(model, "recompute", 0.5) as left,
        host_cache(model, "stream", None) as right,
    ):
        for turn in range(3):
            for batch, expected, ours in ((first, plain[0], left), (second, plain[1], right)):
                columns = expected.get_seq_length()
                more = make_batch((11,) * batch.input_ids.shape[0], seed=turn)
                inputs = batch if columns == 0 else more
                mask = torch.cat([batch.attention_mask, *[more.attention_mask] * turn], dim=1)
                arguments = {
                    "input_ids": inputs.input_ids,
                    "attention_mask": mask,
                    "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, columns:],
                }
                with torch.no_grad():
                    wanted = model(**arguments, past_key_values=expected).logits[:, -1]
                    made = model(**arguments, past_key_values=ours).logits[:, -1]
                torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-3)
        # The plain cache of the same model works beside them, and one may close before the other.
        left.close()
        assert_same(generate(model, first, plain_cache(model)), generate(model, first, None))
        right.reset()
        assert_same(generate(model, first, plain_cache(model)), generate(model, first, right))


@pytest.mark.parametrize("name", KINDS)
def test_close_leaves_the_model_as_it_was(name):
    model, batch = make_model(name), make_batch((50, 31))
    before = generate(model, batch, None)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    implementations = [
        module.config._attn_implementation
        for module in model.modules()
        if hasattr(module, "config")
    ]
    requires = [parameter.requires_grad for parameter in model.parameters()]
    names = [key for key, _ in model.named_modules()]
    with host_cache(model, "recompute", 0.5) as cache:
        generate(model, batch, cache)
        assert model.config._attn_implementation != NAME
        for key, value in model.state_dict().items():
            assert torch.equal(value, weights[key])
    cache.close()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert [
        module.config._attn_implementation
        for module in model.modules()
        if hasattr(module, "config")
    ] == implementations
    assert [parameter.requires_grad for parameter in model.parameters()] == requires
    assert [key for key, _ in model.named_modules()] == names
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    for parameter in model.parameters():
        size_bytes = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == size_bytes
    after = generate(model, batch, None)
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.logits, before.logits)


def test_weights_share_one_buffer_while_a_cache_is_open():
    model = make_model("llama-gqa")
    attention = model.model.layers[0].self_attn
    with host_cache(model, "recompute", 0.5):
        key, value = attention.k_proj.weight, attention.v_proj.weight
        assert key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    key, value = attention.k_proj.weight, attention.v_proj.weight
    assert key.untyped_storage().data_ptr() != value.untyped_storage().data_ptr()


class InjectedError(Exception):
    pass


@pytest.mark.parametrize("place", ["before attention", "after attention", "head"])
@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_a_forward_that_fails_half_way(policy, fraction, place):
    model, batch = make_model("llama-gqa"), make_batch((50, 31))
    expected = generate(model, batch, plain_cache(model))
    module = {
        "before attention": model.model.layers[1].input_layernorm,
        "after attention": model.model.layers[1].mlp,
        "head": model.lm_head,
    }[place]

    def fail(*arguments):
        raise InjectedError

    with host_cache(model, policy, fraction) as cache:
        generate(model, batch, cache, 5)
        columns = cache.get_seq_length()
        hook = module.register_forward_pre_hook(fail)
        step = {
            "input_ids": torch.full((2, 1), 7),
            "attention_mask": torch.cat(
                [batch.attention_mask, torch.ones(2, columns - 49, dtype=torch.int64)], dim=1
            ),
            "past_key_values": cache,
        }
        with torch.no_grad(), pytest.raises(InjectedError):
            model(**step)
        hook.remove()
        assert model.config._attn_implementation != NAME
        assert_same(expected, generate(model, batch, plain_cache(model)))
        with torch.no_grad(), pytest.raises(ConfigurationError, match=r"call reset\(\)"):
            model(**step)
        cache.reset()
        assert_same(expected, generate(model, batch, cache))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((3, 1), 7)}, "the batch has 3 rows, but the cache has 2"),
        ({"attention_mask": torch.ones(2, 9)}, "attention_mask has shape"),
        ({"attention_mask": torch.ones(2, 1, 1, 51)}, "attention_mask has shape"),
        ({"input_ids": None}, "without input_ids and inputs_embeds"),
    ],
)
def test_arguments_that_are_refused_cost_nothing(change, message):
    """The cache refuses before it has changed anything, so it can be used further."""
    model, batch = shared_model("llama-gqa"), make_batch((50, 50))
    plain = plain_cache(model)
    with host_cache(model, "recompute", 0.5) as cache, torch.no_grad():
        model(batch.input_ids, past_key_values=plain)
        model(batch.input_ids, past_key_values=cache)
        with pytest.raises(ConfigurationError, match=message):
            model(**{"input_ids": torch.full((2, 1), 7), "past_key_values": cache, **change})
        expected = model(torch.full((2, 1), 7), past_key_values=plain).logits
        made = model(torch.full((2, 1), 7), past_key_values=cache).logits
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("policy", "fraction"), [("stream", None), ("recompute", 0.6)])
def test_host_memory_that_runs_out_loses_nothing(policy, fraction):
    model, batch = shared_model("llama-gqa"), make_batch((50, 50))
    plain = plain_cache(model)
    with host_cache(model, policy, fraction, reserve_tokens=1) as probe, torch.no_grad():
        model(batch.input_ids, past_key_values=probe)
        host_bytes = probe.paged.host_bytes
    options = {"reserve_tokens": 1, "host_memory": host_bytes}
    with host_cache(model, policy, fraction, **options) as cache, torch.no_grad():
        expected = model(batch.input_ids, past_key_values=plain).logits
        made = model(batch.input_ids, past_key_values=cache).logits
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-3)
        more = make_batch((400, 400), seed=9).input_ids
        for _ in range(2):
            with pytest.raises(MemoryBudgetError, match="host_memory allows"):
                model(more, past_key_values=cache)
            assert cache.get_seq_length() == 50
            cache.paged.layout.check_integrity()
        for _ in range(3):
            expected = model(more[:, :1], past_key_values=plain).logits
            made = model(more[:, :1], past_key_values=cache).logits
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-3)


def test_host_memory_that_cannot_hold_the_prompt():
    model, batch = shared_model("llama-gqa"), make_batch((50, 50))
    with (
        host_cache(model, "stream", None, host_memory=10_000) as cache,
        pytest.raises(MemoryBudgetError, match="host_memory"),
    ):
        generate(model, batch, cache)


def test_a_closed_cache_is_refused():
    model, batch = make_model("llama-gqa"), make_batch((50, 50))
    with host_cache(model, "stream", None) as cache:
        generate(model, batch, cache, 2)
    with pytest.raises(ConfigurationError, match="closed"):
        generate(model, batch, cache, 2)
    with host_cache(model, "stream", None), pytest.raises(ConfigurationError, match="closed"):
        generate(model, batch, cache, 2)


def test_a_cache_of_another_model_is_refused():
    model, other = make_model("llama-gqa"), make_model("llama-gqa", seed=5)
    batch = make_batch((50, 50))
    with host_cache(model, "stream", None) as cache:
        with pytest.raises(ConfigurationError, match="another model"):
            generate(other, batch, cache, 2)
        with (
            host_cache(other, "stream", None),
            pytest.raises(ConfigurationError, match="another model"),
        ):
            generate(other, batch, cache, 2)
        with torch.no_grad(), pytest.raises(ConfigurationError, match="another model"):
            model.model(batch.input_ids, past_key_values=cache)


def test_headrace_attention_without_a_cache_is_refused():
    model = make_model("llama-gqa")
    with host_cache(model, "stream", None):
        pass
    model.set_attn_implementation(NAME)
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="without a HostCache"):
        model(make_batch((5,)).input_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fast"}, "policy is 'fast'; allowed are"),
        ({"recompute_fraction": 1.5}, "recompute_fraction is 1.5; allowed are fractions"),
        ({"policy": "stream", "recompute_fraction": 0.5}, "rebuilds nothing"),
        ({"host_fraction": 1.5}, "host_fraction"),
        ({"host_fraction": 0.7, "recompute_fraction": 0.7}, "together"),
        ({"host_fraction": 0.5, "policy": "stream"}, "does not attend"),
        ({"reserve_tokens": 0}, "reserve_tokens is 0; allowed is 1 or more"),
        ({"gpu_memory": "much"}, "gpu_memory"),
        ({"profile": "abacus"}, "abacus"),
    ],
)
def test_settings_that_are_not_allowed_leave_no_hooks(options, message):
    model = make_model("llama-gqa")
    with pytest.raises(Exception, match=message):
        HostCache(model, **options)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_close_frees_the_buffers_at_once():
    """Not when the garbage collector comes by: it would free gigabytes inside a later step."""
    model = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2,
            hidden_size=64,
            intermediate_size=64,
            num_attention_heads=4,
            vocab_size=100,
        )
    ).eval()
    cache = HostCache(model, policy="stream")
    with torch.no_grad():
        model(input_ids=torch.arange(3, 90)[None], past_key_values=cache)
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    store = weakref.ref(cache.paged._store)
    ring = weakref.ref(cache.paged._ring)
    gc.disable()
    try:
        cache.close()
        assert store() is None
        assert ring() is None
    finally:
        gc.enable()
