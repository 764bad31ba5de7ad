"""How keys and values are made from X: found for each architecture, and verified."""

import pytest
import torch
from tests.support import CONFIGS, make_model

from headrace.hf.observe import observe
from headrace.model.kv_weights import FusedLinear, SeparateLinears
from headrace.model.projection import KeyNorm, LayerProjection, find_projection
from headrace.model.rotary import _is_of_halves, rotary_modules, rotate_halves

EXPECTED = {
    "llama": (SeparateLinears, KeyNorm.NONE, True, False),
    "llama-gqa": (SeparateLinears, KeyNorm.NONE, True, False),
    "mistral": (SeparateLinears, KeyNorm.NONE, True, False),
    "mistral-window": (SeparateLinears, KeyNorm.NONE, True, False),
    "qwen2": (SeparateLinears, KeyNorm.NONE, True, False),
    "qwen3": (SeparateLinears, KeyNorm.PER_HEAD, True, False),
    "olmo2": (SeparateLinears, KeyNorm.ACROSS_HEADS, True, False),
    "opt": (SeparateLinears, KeyNorm.NONE, False, False),
    "gemma2": (SeparateLinears, KeyNorm.NONE, True, False),
    "phi3": (FusedLinear, KeyNorm.NONE, True, False),
    "gpt-neox": (FusedLinear, KeyNorm.NONE, True, True),
    "gpt2": (FusedLinear, KeyNorm.NONE, False, False),
}


def found(model):
    embeddings = rotary_modules(model)
    return [(layer, find_projection(layer.observation, embeddings)) for layer in observe(model)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_has_a_recipe(name):
    source, where, is_rotated, is_partial = EXPECTED[name]
    for layer, projection in found(make_model(name)):
        assert isinstance(projection, LayerProjection)
        assert isinstance(projection.source, source)
        assert projection.key_norm[0] is where
        assert (projection.rotary is not None) is is_rotated
        seen = layer.observation
        key, value = projection.rebuild(seen.activations, seen.positions)
        torch.testing.assert_close(key, seen.key, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value, seen.value, rtol=1e-4, atol=1e-5)
        assert key.stride(-1) == value.stride(-1) == 1
        if is_partial:
            plain = projection.rotary
            projection.rotary = None
            unturned, _ = projection.rebuild(seen.activations, seen.positions)
            projection.rotary = plain
            half = key.shape[-1] // 2
            torch.testing.assert_close(unturned[..., half:], key[..., half:])
            assert not torch.allclose(unturned[..., :half], key[..., :half], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "phi3", "gpt2"])
def test_recipes_are_verified_in_half_precision_too(name, dtype):
    for _, projection in found(make_model(name, dtype)):
        assert isinstance(projection, LayerProjection)


@pytest.mark.parametrize("biases", [(True, True), (False, False), (True, False), (False, True)])
def test_merged_weights_are_views_of_one_buffer_and_restored_ones_are_not(biases):
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.nn.Linear(6, 4, bias=bias) for bias in biases)
    source = SeparateLinears(key, value)
    x = torch.randn(3, 5, 6, generator=generator)
    expected = torch.cat([key(x), value(x)], dim=-1)
    before = [parameter.detach().clone() for parameter in (*key.parameters(), *value.parameters())]
    torch.testing.assert_close(source(x), expected)
    source.merge()
    torch.testing.assert_close(source(x), expected)
    torch.testing.assert_close(torch.cat([key(x), value(x)], dim=-1), expected)
    assert key.weight.untyped_storage().data_ptr() == value.weight.untyped_storage().data_ptr()
    source.restore()
    torch.testing.assert_close(source(x), expected)
    after = [*key.parameters(), *value.parameters()]
    for old, parameter in zip(before, after, strict=True):
        assert torch.equal(old, parameter)
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    source.restore()


@pytest.mark.parametrize("moved", [("weight",), ("bias",), ("weight", "bias")])
def test_weights_and_biases_may_move_by_themselves(moved):
    """As streamed ones do, from slot to slot; others come to where they were."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    source = SeparateLinears(key, value)
    source.merge()
    x = torch.randn(3, 6, generator=generator)
    expected = source(x)
    kept = []
    for name in moved:
        first, second = getattr(key, name), getattr(value, name)
        elsewhere = torch.cat([first.detach(), second.detach()])
        kept.append(first.data)
        first.data, second.data = elsewhere[:4], elsewhere[4:]
    for old in kept:
        old.as_strided((8, *old.shape[1:]), old.stride()).fill_(torch.nan)
    torch.testing.assert_close(source(x), expected)


def test_subclasses_of_linear_layers_are_called_and_not_merged():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    key, value = Doubled(6, 4), torch.nn.Linear(6, 4)
    source = SeparateLinears(key, value)
    source.merge()
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(source(x), torch.cat([key(x), value(x)], dim=-1))
    assert key.weight.untyped_storage().data_ptr() != value.weight.untyped_storage().data_ptr()


def test_a_module_without_weights_that_are_known():
    (layer, _), *_ = found(make_model("llama-gqa"))
    layer.observation.module.unknown_proj = layer.observation.module.k_proj
    del layer.observation.module.k_proj
    reason = find_projection(layer.observation, [])
    assert reason == "no key and value weights were found in LlamaAttention"


def test_a_recipe_that_does_not_agree_says_by_how_much():
    model = make_model("llama-gqa")
    layer = observe(model)[0]
    with torch.no_grad():
        layer.module.k_proj.weight[0, 0] += 1.0
    reason = find_projection(layer.observation, rotary_modules(model))
    assert isinstance(reason, str)
    assert "differ from the model's own by" in reason


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "phi3", "gpt-neox", "gemma2"])
def test_keys_before_their_rotation_are_rotated_by_halves(name):
    for layer, projection in found(make_model(name)):
        assert projection.rotates_last
        seen = layer.observation
        (key, value), (cos, sin) = projection.rebuild_unrotated(seen.activations)
        width = cos.shape[-1]
        tables = (table[seen.positions][:, None] for table in (cos, sin))
        turned = rotate_halves(key[..., :width], *tables)
        turned = torch.cat([turned, key[..., width:]], dim=-1)
        torch.testing.assert_close(turned, seen.key, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value, seen.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_keys_that_are_not_rotated_have_no_rotation_left(name):
    for _, projection in found(make_model(name)):
        assert not projection.rotates_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_a_rotation_of_halves_is_taken_for_one(dtype):
    angles = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)) * 6
    cos, sin = (part.repeat(1, 1, 2).to(dtype) for part in (angles.cos(), angles.sin()))

    def halves(query, key, cos, sin):
        first, second = key.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return query, key * cos[:, None] + turned * sin[:, None]

    def pairs(query, key, cos, sin):
        turned = torch.stack([-key[..., 1::2], key[..., ::2]], dim=-1).flatten(-2)
        return query, key * cos[:, None] + turned * sin[:, None]

    def unlike(query, key, cos, sin):
        return query, halves(query, key, cos, sin)[1] * 1.1

    assert _is_of_halves(halves, (cos, sin))
    assert not _is_of_halves(pairs, (cos, sin))
    assert not _is_of_halves(unlike, (cos, sin))


def test_tables_of_rotation_follow_the_positions_that_were_reserved():
    model = make_model("llama-gqa")
    (layer, projection), *_ = found(model)
    rotary = projection.rotary
    key = torch.randn(1, 2, 3, 12, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 700, 30]])
    rotary.table.reserve(1000, key)
    wide = rotary(key, places)
    rotary.table.reserve(10, key)
    assert torch.equal(rotary(key, places), wide)
    torch.testing.assert_close(wide[:, :, 0], key[:, :, 0])
    assert not torch.allclose(wide[:, :, 1], key[:, :, 1], atol=1e-2)
    assert layer.scoring.window is None
