"""Loads a model and its tokenizer: the shipped one, a directory, a hub id, or made-up weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from headrace.errors import ConfigurationError, ModelError
from headrace.hf.placing import Placing, choose_placing, place
from headrace.hf.planning import CacheOptions
from headrace.model.published import published_names, published_shape
from headrace.model.shape import Experts, ModelShape
from headrace.plan.workload import Workload

DEMO = "demo"
"""Name of the model that is shipped with the package."""

DEMO_DIRECTORY = Path(__file__).parent.parent / "assets" / "demo"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SLICE_VOCAB = 2048
_KINDS = {"llama": "llama", "qwen3": "qwen3", "gemma": "gemma2", "olmo": "olmo2"}
_KINDS_WITH_EXPERTS = {"qwen3": "qwen3_moe", "mixtral": "mixtral"}
_ALLOWED = "give a directory with config.json, a hub id such as 'Qwen/Qwen3-0.6B', or 'demo'"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode, on its device.
        tokenizer: pads on the left; None for made-up weights.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None


def quiet_libraries() -> None:
    """Keep progress bars and advice of other libraries off the terminal (for command lines)."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def resolve_device(device: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"device is {device!r}; allowed are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device is 'cuda', but torch sees no CUDA device; use 'cpu'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device, 0) if device == "cuda" else torch.device(device)


def resolve_dtype(dtype: str | None) -> torch.dtype | str:
    """Return a dtype by its name; by default the one that the model was saved in."""
    if dtype is None or dtype == "auto":
        return "auto"
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    options: CacheOptions | None = None,
    workload: Workload | None = None,
    emulate: str | None = None,
) -> LoadedModel:
    """Load a model by name.

    Args:
        name: ``demo``, a local directory, or a hub id.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or None for what the model was saved in.
        options: budgets; what of the model does not fit stays on the host, and is streamed. None:
            all of it goes to the device.
        workload: the rows that there will be at once; None: a few of a usual length.
        emulate: a published machine that is emulated, or None.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        MemoryBudgetError: it does not fit the budgets even so.
    """
    where, target, element = _locate(name), resolve_device(device), resolve_dtype(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
        config = AutoConfig.from_pretrained(where)
        placing = _placing(config, element, target, options, workload, emulate)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=element)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        hint = "" if Path(where).is_dir() else f"; {_ALLOWED}"
        raise ModelError(f"model {name!r} cannot be loaded: {_cause(error)}{hint}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    if placing is None:
        model = model.to(target)
    else:
        place(model, placing, target, placing.profile)
    return LoadedModel(name, model, tokenizer)


def _placing(
    config: PretrainedConfig,
    element: torch.dtype | str,
    target: torch.device,
    options: CacheOptions | None,
    workload: Workload | None,
    emulate: str | None,
) -> Placing | None:
    """Return where the weights of a model of this configuration go; None for all to the device."""
    if options is None:
        return None
    saved = getattr(config, "dtype", None) or torch.float32
    dtype = element if isinstance(element, torch.dtype) else saved
    return choose_placing(config, dtype, target, options, workload, emulate)


def _locate(name: str) -> str:
    """Return what the loaders of `transformers` take."""
    if name == DEMO:
        return str(DEMO_DIRECTORY)
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name!r} is a directory without config.json")
        return str(path)
    if looks_local:
        raise ModelError(f"model {name!r} does not exist; {_ALLOWED}")
    if name in published_names():
        raise ModelError(
            f"model {name!r} is a published shape without weights; use it with 'headrace plan' or "
            "with --dummy-weights, or give a directory or a hub id"
        )
    return name


def _cause(error: BaseException) -> str:
    """Return an error's first line; all of them, if the first announces a list."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return " ".join(lines) if first.endswith(":") else first


def dummy_model(
    name: str,
    *,
    layers: int | None = None,
    device: str = "auto",
    dtype: str = "bfloat16",
    seed: int = 0,
    narrow: int = 1,
    positions: int = 0,
) -> LoadedModel:
    """Return a model of a published shape with random weights.

    A slice (``layers`` below the shape's, or ``narrow`` above 1) also has a smaller vocabulary, so
    that embedding and head do not outweigh the layers that are left.

    Args:
        name: a published shape.
        layers: decoder layers, or None for all.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of weights and cache.
        seed: of the weights.
        narrow: how many times fewer heads there are, and narrower layers.
        positions: tokens of a row that there are positions for at least, whatever the shape's.
    """
    shape = published_shape(name).narrowed(narrow)
    count = shape.num_layers if layers is None else layers
    if not 1 <= count <= shape.num_layers:
        raise ConfigurationError(
            f"layers is {count}; {name} has {shape.num_layers}, so allowed are 1 to "
            f"{shape.num_layers}"
        )
    whole = count == shape.num_layers and narrow == 1
    config = _config(shape, count, shape.vocab_size if whole else _SLICE_VOCAB, positions)
    target, element = resolve_device(device), resolve_dtype(dtype)
    assert isinstance(element, torch.dtype)
    torch.manual_seed(seed)
    with torch.device(target):
        model = AutoModelForCausalLM.from_config(config, dtype=element)
    label = name if count == shape.num_layers else f"{name}, {count} layers"
    label += "" if narrow == 1 else f", 1/{narrow} as wide"
    return LoadedModel(f"{label} (random weights)", model.eval(), None)


def _config(shape: ModelShape, layers: int, vocab_size: int, positions: int) -> Any:
    """Return a Hugging Face configuration with a published shape's widths."""
    family = shape.name.split("-")[0]
    if family == "opt":
        return OPTConfig(
            num_hidden_layers=layers,
            hidden_size=shape.d_model,
            word_embed_proj_dim=shape.d_model,
            ffn_dim=shape.d_ff,
            num_attention_heads=shape.num_heads,
            vocab_size=vocab_size,
            max_position_embeddings=max(shape.max_context, 4096, positions),
        )
    kinds = _KINDS if shape.experts is None else _KINDS_WITH_EXPERTS
    return AutoConfig.for_model(
        kinds[family],
        num_hidden_layers=layers,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=max(shape.max_context, positions),
        tie_word_embeddings=shape.tied_embeddings,
        **_expert_settings(shape.experts),
    )


def _expert_settings(experts: Experts | None) -> dict[str, int]:
    """Return a configuration's settings of experts, under the names of all kinds there are."""
    if experts is None:
        return {}
    return {
        "num_experts": experts.count,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.d_ff,
    }
