"""``HostCache``: a cache for any `transformers` ``generate`` call whose content lives on the host.

Shape suffixes: B rows, q inputs of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attached_cache import AttachedCache
from headrace.hf.attachment import Attachment
from headrace.hf.planning import CacheOptions
from headrace.plan.workload import Workload

RESERVED_TOKENS = 1024
"""New tokens of a row for which memory is taken at the first forward, unless said otherwise."""


class HostCache(AttachedCache):
    """A KV cache in host memory, brought to bear by the planned paths.

    Pass it as ``past_key_values`` to ``generate`` or to the model itself. The model has hooks while
    a cache of it is open; ``close()``, or leaving the ``with`` block, takes them away.

    Args:
        model: a `transformers` decoder-only model, on its device and in its dtype.
        policy: ``auto``, ``resident``, ``stream``, ``kvpr``, ``recompute`` or ``host``.
        gpu_memory: device memory to keep within, such as ``"16GiB"`` or bytes; None: the device's.
        host_memory: host memory to keep within; None: what is free.
        profile: the machine: a profile, a published name, or a profile's file. None: this machine
            is measured when a decision needs it. On a CPU, a profile of an emulated link paces it.
        recompute_fraction: share of each prompt's tokens, 0 to 1, kept as X instead of the planned.
        host_fraction: share of each prompt's tokens, 0 to 1, that the host's cores attend to,
            instead of the planned; the others that are not kept as X are then streamed.
        reserve_tokens: new tokens of a row for which memory is taken at the first forward. More are
            possible; the pools then grow.
        poison: overwrite staging buffers once they have been read (tests).

    Raises:
        ConfigurationError: a setting is not allowed.
        UnsupportedModelError: the model cannot be served.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        policy: str = "auto",
        gpu_memory: str | int | None = None,
        host_memory: str | int | None = None,
        profile: HardwareProfile | str | None = None,
        recompute_fraction: float | None = None,
        host_fraction: float | None = None,
        reserve_tokens: int = RESERVED_TOKENS,
        poison: bool = False,
    ) -> None:
        if reserve_tokens < 1:
            raise ConfigurationError(f"reserve_tokens is {reserve_tokens}; allowed is 1 or more")
        options = CacheOptions.checked(
            policy,
            gpu_memory,
            host_memory,
            recompute_fraction,
            host_fraction,
            profile,
            poison,
        )
        self._reserve_tokens = reserve_tokens
        self._mask: NDArray[np.bool_] | None = None
        self._new_columns = 0
        self.columns = 0
        """Columns of the padded batch so far (what `transformers` calls the sequence length)."""
        super().__init__(model, options)

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin_forward(self, attachment: Attachment, inputs: dict[str, Any]) -> None:
        """Place a forward's tokens (called by the model's hook)."""
        self._check_owner(attachment)
        if self._broken:
            raise ConfigurationError(
                "an earlier forward with this cache failed half-way; call reset() and start again"
            )
        given = inputs.get("input_ids")
        given = inputs.get("inputs_embeds") if given is None else given
        if given is None:
            raise ConfigurationError("the model was called without input_ids and inputs_embeds")
        rows, q_len = int(given.shape[0]), int(given.shape[1])
        if self._paged is None:
            self._open(Workload(rows, q_len, self._reserve_tokens), given.device, rows * q_len)
        assert self._paged is not None
        if rows != self._paged.rows:
            raise ConfigurationError(
                f"the batch has {rows} rows, but the cache has {self._paged.rows}; use a new "
                "cache, or reset() this one"
            )
        seen = self._read_mask(inputs.get("attention_mask"), rows, q_len)
        new = [np.flatnonzero(row).tolist() for row in seen[:, self.columns :]]
        if self.replanning is not None:
            self.replanning.before_forward(range(rows), q_len)
        self._paged.reserve(new)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = torch.arange(q_len, device=given.device)[None] + self.columns
        positions = positions.expand(rows, q_len).to(given.device)
        if q_len > 1:
            # Only a prompt's tokens are kept as X, whose keys are rotated by these positions later.
            self._reserve_rotary(int(positions.max()) + 1)
        # From here on things change: what fails before has cost nothing.
        self._broken = self._running = True
        self._show(seen)
        self._paged.begin_step(new, q_len, self.columns, positions)
        self._new_columns = q_len

    def end_forward(self, failed: bool) -> None:
        """Count the forward's tokens (called by the model's hook)."""
        super().end_forward(failed)
        if not failed:
            self.columns += self._new_columns

    def _read_mask(self, mask: Tensor | None, rows: int, q_len: int) -> NDArray[np.bool_]:
        """Return which cached and new columns of each row are tokens that are seen."""
        total = self.columns + q_len
        if mask is None:
            seen = np.ones((rows, total), dtype=np.bool_)
            if self._mask is not None:
                seen[:, : self.columns] = self._mask
        elif mask.dim() != 2 or mask.shape[1] != total:
            raise ConfigurationError(
                f"attention_mask has shape {tuple(mask.shape)}; with a HostCache it must have "
                f"shape ({rows}, {total}): rows, cached and new columns"
            )
        else:
            seen = mask.to(dtype=torch.bool, device="cpu").numpy().copy()
        return seen

    def _show(self, seen: NDArray[np.bool_]) -> None:
        """Let the mask hide cached tokens."""
        assert self._paged is not None
        if self._mask is not None:
            changed = np.flatnonzero((seen[:, : self.columns] != self._mask).any(axis=1))
            for row in changed.tolist():
                self._paged.show(row, seen[row])
        self._mask = seen

    # What `transformers` does to caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the columns of the padded batch so far."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i become what row ``beam_idx[i]`` was (beam search). No page is copied."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        rows = range(self.paged.rows)
        self._select([row for row in rows for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._select(torch.arange(self.paged.rows)[indices.cpu()].tolist())

    @torch.inference_mode(False)
    @torch.no_grad()
    def _select(self, sources: list[int]) -> None:
        self.paged.select(sources)
        if self._mask is not None:
            self._mask = self._mask[sources]

    @torch.inference_mode(False)
    @torch.no_grad()
    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest columns: that many if negative; if positive, all but that many."""
        if tokens_to_remove == 0 or self._paged is None:
            return
        kept = tokens_to_remove if tokens_to_remove > 0 else self.columns + tokens_to_remove
        if kept < self.columns:
            kept = max(kept, 0)
            self.paged.crop(kept)
            self.columns = kept
            if self._mask is not None:
                self._mask = self._mask[:, : self.columns]

    def reset(self) -> None:
        """Forget everything; the next forward begins anew, with any number of rows."""
        super().reset()
        self._mask = None
        self.columns = 0
