"""``HostCache``: a cache for any `transformers` ``generate`` call whose content lives on the host.

Shape suffixes: B rows, q inputs of a step, H key/value heads, D head width, M model width.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headrace.errors import ConfigurationError, UnsupportedModelError
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attachment import Attachment, attach, detach
from headrace.hf.planning import CacheOptions, CachePlan, plan_cache
from headrace.model.projection import LayerProjection
from headrace.plan.plan import Plan
from headrace.plan.simulate import simulate
from headrace.plan.workload import Workload
from headrace.runtime.attention import Scoring
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.runtime.lanes import Backend
from headrace.runtime.paged import PagedCache
from headrace.timeline import Origin, Timeline

RESERVED_TOKENS = 1024
"""New tokens of a row for which memory is taken at the first forward, unless said otherwise."""


class _HostLayer(CacheLayerMixin):
    """What `transformers` sees of one layer: lengths, but no tensors."""

    is_croppable = True

    def __init__(self, cache: HostCache, is_sliding: bool) -> None:
        super().__init__()
        self._cache = cache
        self.is_sliding = is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is to be initialised."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values alone: the attention function takes them from here."""
        self._cache.check_forward()
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that a mask would cover."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the columns of the padded batch so far."""
        return self._cache.columns

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1


class HostCache(Cache):
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
        self._options = CacheOptions.checked(
            policy,
            gpu_memory,
            host_memory,
            recompute_fraction,
            host_fraction,
            profile,
            poison,
        )
        self._reserve_tokens = reserve_tokens
        self._model = model
        self._attachment = attach(model)
        self._backend: Backend | None = None
        self._paged: PagedCache | None = None
        self._planned: CachePlan | None = None
        self._mask: NDArray[np.bool_] | None = None
        self._new_columns = 0
        self._broken = False
        self._running = False
        self._closed = False
        self._tracing = False
        self.columns = 0
        """Columns of the padded batch so far (what `transformers` calls the sequence length)."""
        super().__init__(
            layers=[
                _HostLayer(self, layer.scoring.window is not None)
                for layer in self._attachment.layers
            ]
        )

    # What is known of it

    @property
    def plan(self) -> Plan | None:
        """The plan with its prediction; None before the first forward, or if none was needed."""
        return None if self._planned is None else self._planned.plan

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided differently from what was asked, and why."""
        notes = () if self._planned is None else self._planned.notes
        unavailable = None if self._paged is None else self._paged.host_note
        return (*notes, f"the host attends slowly: {unavailable}") if unavailable else notes

    @property
    def paged(self) -> PagedCache:
        """The cache behind it."""
        if self._paged is None:
            raise ConfigurationError("the cache is empty: run the model with it first")
        return self._paged

    def trace(self, enabled: bool = True) -> None:
        """Record from the next step on what runs when; forget what was recorded."""
        self._tracing = enabled
        if self._paged is not None and self._backend is not None:
            self._backend.timed = enabled
            self._paged.recorder.clear()
            self._paged.recorder.enabled = enabled

    def timeline(self, label: str = "") -> Timeline:
        """Return what was recorded since ``trace``."""
        return self.paged.recorder.timeline(self.origin, label)

    def predicted_timeline(self, label: str = "") -> Timeline | None:
        """Return the simulation of what ``timeline`` recorded: the same programs, step by step.

        Where nothing was recorded: of a few decode steps over the cache as it is. None without a
        profile.
        """
        if self._planned is None or self._planned.profile is None:
            return None
        programs = self.paged.recorder.programs or (self.paged.decode_program(),) * 4
        dtype = self._planned.settings.shape.dtype
        return simulate(programs, self._planned.profile, dtype, label=label)

    @property
    def origin(self) -> Origin:
        """Whether what is measured here is measured on a real link or on an emulated one."""
        return Origin.MEASURED if self._backend is None else self._backend.origin

    @property
    def policy(self) -> str:
        """The policy in force: the chosen one where ``auto`` was asked for."""
        planned = self._planned
        return (self._options.policy if planned is None else planned.settings.policy).value

    @property
    def recompute_fraction(self) -> float:
        """Share of each prompt's tokens that is kept as X."""
        return 0.0 if self._planned is None else self._planned.settings.split.recompute

    @property
    def resident_fraction(self) -> float:
        """Share of each prompt's tokens whose K/V stay on the device."""
        return 0.0 if self._planned is None else self._planned.settings.split.resident

    @property
    def link_bytes_per_step(self) -> int:
        """Bytes that a decode step over the cache as it is brings to the device."""
        return self.paged.decode_program().link_bytes

    @property
    def peak_gpu_bytes(self) -> int:
        """Peak device memory: CUDA's own count; on a CPU the model's weights and our buffers."""
        parameters = list(self._model.parameters())
        if parameters[0].is_cuda:
            return torch.cuda.max_memory_allocated(parameters[0].device)
        return _memory_of(parameters) + self.paged.device_bytes

    # What a forward does. Our tensors outlive it, so they are neither part of a graph nor bound to
    # the mode of one forward, whatever the mode in which the caller runs the model.

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
            self._open(rows, q_len, given.device)
        assert self._paged is not None
        if rows != self._paged.rows:
            raise ConfigurationError(
                f"the batch has {rows} rows, but the cache has {self._paged.rows}; use a new "
                "cache, or reset() this one"
            )
        seen = self._read_mask(inputs.get("attention_mask"), rows, q_len)
        new = [np.flatnonzero(row).tolist() for row in seen[:, self.columns :]]
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

    def _check_owner(self, attachment: Attachment | None) -> None:
        if self._closed:
            raise ConfigurationError("this cache is closed; make a new one")
        if attachment is not self._attachment:
            raise ConfigurationError(
                "this cache was made for another model, or for a larger one that this is a part "
                "of; pass it to the model that it was made with"
            )

    def check_forward(self) -> None:
        """Raise unless a forward of the cache's own model is under way."""
        if not self._running:
            self._check_owner(None)

    @torch.inference_mode(False)
    @torch.no_grad()
    def attend_layer(
        self,
        layer: int,
        activations: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """Attend one layer's new tokens to the whole context (called by the attention function)."""
        assert self._paged is not None
        return self._paged.attend(layer, activations, query, key, value, scoring)

    def end_forward(self, failed: bool) -> None:
        """Count the forward's tokens (called by the model's hook)."""
        assert self._paged is not None
        self._running = False
        if failed:
            return
        self._paged.end_step()
        self.columns += self._new_columns
        self._broken = False

    def _open(self, rows: int, prompt_len: int, device: torch.device) -> None:
        """Plan for the batch and take the memory."""
        dtype = self._attachment.layers[0].observation.key.dtype
        workload = Workload(rows, prompt_len, self._reserve_tokens)
        self._planned = plan_cache(
            self._model, self._attachment, self._options, workload, device, dtype
        )
        if self._backend is None:
            self._backend = _open_backend(device, self._options.profile)
        self._reserve_rotary(workload.max_context)
        self._paged = PagedCache(
            self._backend,
            self._planned.settings,
            self._rebuild,
            rows,
            prompt_len,
            self._reserve_tokens,
        )
        self.trace(self._tracing)

    def _reserve_rotary(self, positions: int) -> None:
        for projection in self._attachment.projections:
            if isinstance(projection, LayerProjection) and projection.rotary is not None:
                like = next(self._model.parameters())
                projection.rotary.reserve(positions, like)

    def _rebuild(self, layer: int, activations: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        projection = self._attachment.projections[layer]
        assert isinstance(projection, LayerProjection)
        return projection.rebuild(activations, positions)

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
        if self._paged is not None:
            self._paged.drain()
        if self._backend is not None:
            self._backend.close()
        if self._paged is not None:
            self._paged.release()
        self._paged = self._planned = self._mask = self._backend = None
        self.columns = 0
        self._broken = self._running = False

    # Its life

    def close(self) -> None:
        """Give back all memory and leave the model as it was; may be called again."""
        if not self._closed:
            self._closed = True
            self.reset()
            detach(self._model)

    def __enter__(self) -> HostCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _memory_of(tensors: list[nn.Parameter]) -> int:
    """Return the bytes of tensors, those that share memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _open_backend(device: torch.device, profile: HardwareProfile | None) -> Backend:
    """Return the lanes of a device; a CPU's link is paced if the profile is of an emulated one."""
    if device.type == "cuda":
        return CudaBackend(device)
    if device.type != "cpu":
        raise UnsupportedModelError(
            f"the model is on device {device.type!r}; headrace runs on 'cuda' and 'cpu'"
        )
    if profile is not None and profile.origin is Origin.EMULATED:
        return CpuBackend(profile.h2d_bytes_per_s, profile.d2h_bytes_per_s)
    return CpuBackend()
