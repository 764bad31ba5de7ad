import shutil
from dataclasses import replace

import pytest
import torch
from tests.support import assert_same, generate, host_cache, make_batch, plain_cache
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from headrace.engine import loading
from headrace.engine.loading import (
    DEMO_DIRECTORY,
    dummy_model,
    load_model,
    quiet_libraries,
    resolve_device,
    resolve_dtype,
)
from headrace.errors import ConfigurationError, HeadraceError, ModelError
from headrace.model.config import from_config
from headrace.model.published import published_names, published_shape

FAMILIES = ("opt-6.7b", "llama-3-8b", "qwen3-8b", "gemma-2-9b", "olmo-2-13b")


def refusal(name, **options) -> str:
    with pytest.raises(HeadraceError) as caught:
        load_model(str(name), device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copied(tmp_path):
    """Make a copy of the shipped model without some of its files."""

    def copy(*without):
        target = tmp_path / "copy"
        shutil.copytree(DEMO_DIRECTORY, target)
        for name in without:
            (target / name).unlink()
        return target

    return copy


def test_the_demo_is_loaded_as_it_was_saved():
    loaded = load_model("demo", device="cpu")
    parameter = next(loaded.model.parameters())
    assert (loaded.name, parameter.dtype, parameter.device.type) == ("demo", torch.bfloat16, "cpu")
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"


def test_a_directory_is_loaded_like_the_demo_it_is_a_copy_of(demo, copied):
    loaded = load_model(str(copied()), device="cpu", dtype="float32")
    for key, value in demo.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)


def test_a_tokenizer_without_padding_pads_with_the_end(copied):
    directory = copied()
    config = directory / "tokenizer_config.json"
    lines = [line for line in config.read_text().splitlines() if '"pad_token"' not in line]
    config.write_text("\n".join(lines))
    tokenizer = load_model(str(directory), device="cpu").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_a_wrong_path_is_named(tmp_path):
    for name in (tmp_path / "no" / "model", "./no-model", "~/no-model-here", "a/b/c"):
        message = refusal(name)
        assert f"{str(name)!r} does not exist" in message
        assert "'demo'" in message


def test_a_directory_without_a_model_is_named(tmp_path):
    assert refusal(tmp_path) == f"model {str(tmp_path)!r} is a directory without config.json"


@pytest.mark.parametrize("name", published_names())
def test_a_published_shape_has_no_weights(name):
    message = refusal(name)
    assert f"{name!r} is a published shape without weights" in message
    assert "headrace plan" in message


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no-such-model", "not an id"])
def test_an_unknown_hub_id_is_named_offline(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(name)
    assert f"{name!r} cannot be loaded: " in message
    assert message.endswith("or 'demo'")


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("config.json", "{", "not a valid JSON"),
        ("config.json", '{"model_type": "t5"}', "T5Config"),
        ("config.json", '{"model_type": "no-such-type"}', "no-such-type"),
        ("model.safetensors", "cut off", "header"),
    ],
)
def test_a_damaged_model_is_named_with_the_cause(copied, file, content, cause):
    directory = copied()
    (directory / file).write_text(content)
    message = refusal(directory)
    assert message.startswith(f"model {str(directory)!r} cannot be loaded: ")
    assert cause in message


def test_missing_weights_are_named(copied):
    assert "model.safetensors" in refusal(copied("model.safetensors"))


def test_a_missing_tokenizer_is_named(copied):
    message = refusal(copied("tokenizer.json", "tokenizer_config.json"))
    assert "tokenizer" in message
    assert not message.endswith(":")


def test_a_setting_that_is_not_allowed_is_named_with_those_that_are():
    assert "dtype is 'int8'; allowed are float32, bfloat16, float16" in refusal(
        "demo", dtype="int8"
    )
    with pytest.raises(ConfigurationError, match=r"device is 'tpu'; allowed are auto, cpu, cuda"):
        load_model("demo", device="tpu")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigurationError, match="sees no CUDA device; use 'cpu'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cpu") == torch.device("cpu")


def test_dtypes():
    assert resolve_dtype(None) == resolve_dtype("auto") == "auto"
    assert resolve_dtype("bfloat16") == torch.bfloat16


def test_a_cause_is_one_line():
    assert loading._cause(OSError("first\nsecond")) == "first"
    assert (
        loading._cause(ValueError("one of:\n(1) this,\n(2) that")) == "one of: (1) this, (2) that"
    )
    assert loading._cause(KeyError()) == "KeyError"


def test_libraries_are_quiet_on_request():
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    quiet_libraries()
    assert logging.get_verbosity() == logging.ERROR
    assert not logging.is_progress_bar_enabled()


@pytest.mark.parametrize("name", published_names())
def test_a_made_up_model_has_the_published_widths(name):
    """Built on the meta device, where weights have shapes but no storage."""
    shape = published_shape(name)
    config = loading._config(shape, 2, shape.vocab_size, 0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    widths = {key: tuple(value.shape) for key, value in model.named_parameters()}
    projections = [key.rsplit("_proj", 1)[0] for key in widths if key.endswith("k_proj.weight")]
    assert len(projections) == 2
    for place in (key.removesuffix("k") for key in projections):
        assert widths[f"{place}q_proj.weight"] == (shape.num_heads * shape.head_dim, shape.d_model)
        assert widths[f"{place}k_proj.weight"] == (shape.d_kv, shape.d_model)
        assert widths[f"{place}v_proj.weight"] == (shape.d_kv, shape.d_model)
    found = from_config(config.to_dict(), name=name)
    assert config.vocab_size == shape.vocab_size
    for field in ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "gated_ff"):
        assert getattr(found, field) == getattr(shape, field), field
    assert found.sliding_window == shape.sliding_window
    assert found.tied_embeddings == shape.tied_embeddings
    assert found.max_context >= shape.max_context


@pytest.mark.parametrize("name", FAMILIES)
def test_a_slice_is_served(monkeypatch, name):
    """A published architecture, narrowed so that it fits a test, generates as the plain model."""
    published = published_shape(name)
    kv_heads = 2 if published.num_kv_heads < published.num_heads else 4
    narrow = replace(
        published,
        d_model=64,
        d_ff=96,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=16,
    )
    monkeypatch.setattr(loading, "published_shape", lambda _: narrow)
    loaded = dummy_model(name, layers=2, device="cpu", dtype="float32")
    assert loaded.name == f"{name}, 2 layers (random weights)"
    assert loaded.tokenizer is None
    assert not loaded.model.training
    model, batch = loaded.model, make_batch((30, 41))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    assert model.config.vocab_size == 2048
    expected = generate(model, batch, plain_cache(model), 6)
    with host_cache(model, "recompute", 0.5) as cache:
        made = generate(model, batch, cache, 6)
        assert cache.notes == ()
    assert_same(expected, made)


def test_weights_depend_on_the_seed_alone(monkeypatch):
    narrow = replace(
        published_shape("llama-2-7b"),
        num_layers=1,
        d_model=32,
        d_ff=32,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=50,
    )
    monkeypatch.setattr(loading, "published_shape", lambda _: narrow)
    models = [dummy_model("llama-2-7b", device="cpu", seed=seed) for seed in (1, 1, 2)]
    first, again, other = (one.model.lm_head.weight for one in models)
    assert first.dtype == torch.bfloat16
    assert first.shape == (50, 32)
    assert models[0].name == "llama-2-7b (random weights)"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_slice_has_at_least_a_layer_and_at_most_all():
    for layers in (0, 33):
        with pytest.raises(ConfigurationError, match=f"layers is {layers}; .* allowed are 1 to 32"):
            dummy_model("opt-6.7b", layers=layers, device="cpu")
    with pytest.raises(ConfigurationError, match="no published model is called 'opt-7b'"):
        dummy_model("opt-7b")


def test_a_directory_is_preferred_to_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opt-6.7b").mkdir()
    with pytest.raises(ModelError, match=r"without config\.json"):
        load_model("opt-6.7b")
