"""Writes the asset directory: weights, tokenizer, configurations and the model card."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaForCausalLM

from demo_model.evaluation import held_out_bits_per_byte
from demo_model.prepared import TOKENIZER_DIR, Manifest, PreparedCorpus
from demo_model.training import RESULT_FILE, WEIGHTS_FILE, TrainingResult, new_model

MAX_ASSET_BYTES = 16 * 2**20

MODEL_CARD = """\
---
license: mit
language: [code]
library_name: transformers
pipeline_tag: text-generation
---

# headrace demo

A Llama-architecture model of {parameters:,} parameters with multi-head attention. It completes
Python source, recognisably and no more than that. It ships with headrace so that every command
can be tried offline; do not use it to write code.

| | |
|---|---|
| layers, width, heads, head dimension | {layers}, {hidden_size}, {heads}, {head_dim} |
| context | {max_context_tokens} tokens |
| vocabulary | {vocab_size}, byte-level BPE |
| weights | bfloat16, input and output embedding tied |

## Data

The source of CPython {python_version}'s standard library, its tests included; without installed
packages, `encodings`, `pydoc_data`, `lib2to3`, `idlelib` and files over 300 kB. Files are held
out by a hash of their path; neither the tokenizer nor the model saw them.

| part | files | bytes | tokens |
|---|---:|---:|---:|
| training | {train_files:,} | {train_bytes:,} | {train_tokens:,} |
| held out | {held_out_files:,} | {held_out_bytes:,} | {held_out_tokens:,} |

## Training

| | |
|---|---|
| steps | {total_steps:,} of {rows_per_step} rows of {row_tokens} tokens |
| tokens | {total_tokens:,} ({epochs:.1f} epochs) |
| optimizer | AdamW, betas {beta1} and {beta2}, weight decay {weight_decay} on matrices |
| learning rate | {peak_learning_rate}, {warmup_steps} steps of warm-up, cosine to zero |
| precision | float32 parameters, bfloat16 products |
| last training loss | {train_loss_nats:.3f} nats per token |
| hardware | {hardware} |
| wall time | {wall_minutes:.1f} minutes |
| software | torch {torch_version}, transformers {transformers_version} |

## Held-out bits per byte

**{bits_per_byte:.4f}** bits per byte: these weights in float32 on the held-out files, joined and
cut into windows of {row_tokens} tokens.

## Making it again

`python scripts/train_demo_model.py` prepares, trains and exports. The recipe is the same on every
device.

## Licence

Weights: MIT. The training data is CPython's standard library, PSF-2.0.
"""


def export(work_dir: Path, target_dir: Path) -> float:
    """Write the asset directory anew and return the held-out bits per byte of its weights.

    Raises FileNotFoundError before the training has ended, ValueError when the files together
    would be larger than `MAX_ASSET_BYTES`.
    """
    corpus = PreparedCorpus.load(work_dir)
    result = TrainingResult.load(work_dir / RESULT_FILE)
    model = new_model(result.recipe, corpus).train(False)
    weights = load_file(work_dir / WEIGHTS_FILE)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    bits_per_byte = held_out_bits_per_byte(model, corpus, row_tokens=result.recipe.row_tokens)

    shutil.rmtree(target_dir, ignore_errors=True)
    save_model(model, corpus.manifest, target_dir)
    shutil.copytree(work_dir / TOKENIZER_DIR, target_dir, dirs_exist_ok=True)
    card = model_card(corpus.manifest, result, bits_per_byte)
    (target_dir / "README.md").write_text(card, encoding="utf-8")
    for path in target_dir.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    size_bytes = sum(path.stat().st_size for path in target_dir.iterdir())
    if size_bytes > MAX_ASSET_BYTES:
        raise ValueError(
            f"{target_dir} has {size_bytes} bytes, at most {MAX_ASSET_BYTES} are allowed: "
            "make the model smaller in scripts/demo_model/recipe.py"
        )
    return bits_per_byte


def save_model(model: LlamaForCausalLM, manifest: Manifest, target_dir: Path) -> None:
    """Write bfloat16 weights, the model's configuration and that of generation (greedy)."""
    model.generation_config = GenerationConfig(
        bos_token_id=manifest.end_id,
        eos_token_id=manifest.end_id,
        pad_token_id=manifest.padding_id,
        do_sample=False,
    )
    torch.nn.Module.to(model, torch.bfloat16)  # transformers' own `to` is typed wrongly
    model.save_pretrained(target_dir)


def model_card(manifest: Manifest, result: TrainingResult, bits_per_byte: float) -> str:
    """Return the text of the model card."""
    recipe = result.recipe
    facts = {**vars(manifest), **vars(recipe), **vars(result)}
    return MODEL_CARD.format(
        **facts,
        head_dim=recipe.hidden_size // recipe.heads,
        total_tokens=recipe.total_tokens,
        epochs=recipe.total_tokens / manifest.train_tokens,
        wall_minutes=result.wall_s / 60,
        bits_per_byte=bits_per_byte,
    )
