"""The demo model's shape and the hyper-parameters of its training, the same on every device."""

import math
from dataclasses import dataclass

from transformers import LlamaConfig

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, apart from the corpus.

    The number of steps is chosen so that two CPU cores with bfloat16 matrix units need about
    100 minutes.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 6
    heads: int = 4
    max_context_tokens: int = 1024

    row_tokens: int = 1024
    rows_per_step: int = 8
    total_steps: int = 6000
    warmup_steps: int = 200
    peak_learning_rate: float = 2e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    # A step sees only 8,192 tokens, so the second moment is averaged over more steps than
    # the 0.95 that is usual for large batches.
    beta2: float = 0.98
    max_gradient_norm: float = 1.0
    seed: int = 20240917

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one optimizer step."""
        return self.rows_per_step * self.row_tokens

    @property
    def total_tokens(self) -> int:
        """Target tokens of the whole training."""
        return self.total_steps * self.tokens_per_step

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step (from 0): linear warm-up, then a cosine down to zero."""
        warmup_steps = min(self.warmup_steps, max(1, self.total_steps // 10))
        if step < warmup_steps:
            return self.peak_learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.total_steps - warmup_steps)
        return self.peak_learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

    def model_config(self, *, vocab_size: int, end_id: int, padding_id: int) -> LlamaConfig:
        """Return the transformers configuration: Llama with multi-head attention."""
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.hidden_size // self.heads,
            max_position_embeddings=self.max_context_tokens,
            tie_word_embeddings=True,
            bos_token_id=end_id,
            eos_token_id=end_id,
            pad_token_id=padding_id,
        )
