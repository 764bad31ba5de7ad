"""Held-out bits per byte."""

import math

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from demo_model.prepared import PreparedCorpus

ROWS_PER_BATCH = 8


@torch.inference_mode()
def held_out_bits_per_byte(
    model: LlamaForCausalLM, corpus: PreparedCorpus, *, row_tokens: int
) -> float:
    """Return the negative log-likelihood of the held-out part in bits, per byte of its text.

    The documents are joined and cut into windows of `row_tokens` targets, each predicted from
    its own window alone. The end-of-text tokens are predicted too and counted as no bytes.
    """
    tokens = torch.from_numpy(corpus.held_out_tokens.astype("int64")).to(model.device)
    whole = (len(tokens) - 1) // row_tokens * row_tokens
    windows = tokens.unfold(0, row_tokens + 1, row_tokens)
    batches = [
        windows[start : start + ROWS_PER_BATCH] for start in range(0, len(windows), ROWS_PER_BATCH)
    ]
    if whole < len(tokens) - 1:
        batches.append(tokens[None, whole:])
    total_nats = torch.zeros((), dtype=torch.float64, device=model.device)
    for rows in batches:
        total_nats += row_losses(model, rows, reduction="sum")
    return float(total_nats) / math.log(2) / corpus.manifest.held_out_bytes


def row_losses(model: LlamaForCausalLM, rows: torch.Tensor, *, reduction: str) -> torch.Tensor:
    """Return the cross-entropy in nats of rows `[B, S + 1]`, each token given those before it."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction
    )
