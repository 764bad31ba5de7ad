"""What every cache of ours is: attached to a model, planned, and called by the model's forward."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headrace.errors import ConfigurationError, HeadraceError, UnsupportedModelError
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attachment import Attachment, DecodeLayer, attach, detach
from headrace.hf.planning import CacheOptions, CachePlan, plan_cache
from headrace.hf.replanning import Replanning
from headrace.hf.weights import device_bytes
from headrace.model.projection import LayerProjection
from headrace.plan.operations import Program
from headrace.plan.options import POLICY_PATHS
from headrace.plan.plan import Plan
from headrace.plan.simulate import simulate
from headrace.plan.workload import Workload
from headrace.runtime.attention import Rotation, Scoring
from headrace.runtime.conveyor import Rebuilt
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.runtime.gpu_kernels import reason_without
from headrace.runtime.lanes import Backend
from headrace.runtime.paged import PagedCache
from headrace.timeline import Origin, Timeline


class HostLayer(CacheLayerMixin):
    """What `transformers` sees of one layer: lengths, but no tensors."""

    is_croppable = True

    def __init__(self, cache: AttachedCache, is_sliding: bool) -> None:
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
        return self._cache.get_seq_length()

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1


class AttachedCache(Cache):
    """A cache in host memory that a model's forward runs with.

    Args:
        model: a `transformers` decoder-only model, on its device and in its dtype.
        options: what is asked of the cache.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """

    def __init__(self, model: nn.Module, options: CacheOptions) -> None:
        self._options = options
        self._model = model
        self._attachment = attach(model)
        self._backend: Backend | None = None
        self._paged: PagedCache | None = None
        self._planned: CachePlan | None = None
        self.replanning: Replanning | None = None
        """What changes the split while rows run; None where it is to stay."""
        self._broken = False
        self._running = False
        self._closed = False
        self._tracing = False
        self._replayed = False
        super().__init__(
            layers=[
                HostLayer(self, layer.scoring.window is not None)
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
        """What was decided differently from what was asked, or changed since, and why."""
        notes = [] if self._planned is None else list(self._planned.notes)
        if self._paged is not None and self._paged.host_note:
            notes.append(f"the host attends slowly: {self._paged.host_note}")
        if self._backend is not None and (reason := reason_without(self._backend.device)):
            notes.append(f"attention takes more launches than it need: {reason}")
        if self.replanning is not None and (words := self.replanning.words()):
            notes.append(words)
        return tuple(notes)

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

    def follow(self, enabled: bool = True) -> None:
        """Note from the next step on what is to run, for ``predicted_timeline``, but not when.

        What was noted or recorded is forgotten. Steps take hardly longer: where pages are filled,
        programs are made with their own costs.
        """
        self.paged.recorder.clear()
        self.paged.recorder.keeps_programs = enabled

    def timeline(self, label: str = "") -> Timeline:
        """Return what was recorded since ``trace``."""
        return self.paged.recorder.timeline(self.origin, label)

    def predicted_timeline(self, label: str = "") -> Timeline | None:
        """Return the simulation of what was recorded or followed: the same programs, step by step.

        Where there is nothing, of a few decode steps over the cache as it is. None without a
        profile.
        """
        if self._planned is None or self._planned.profile is None:
            return None
        programs = self.noted_programs
        dtype = self._planned.settings.shape.dtype
        return simulate(programs, self._planned.profile, dtype, label=label)

    @property
    def noted_programs(self) -> tuple[Program, ...]:
        """The programs that were recorded or followed; else those of a few steps from here."""
        return self.paged.recorder.programs or (self.paged.decode_program(),) * 4

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
    def stream_fraction(self) -> float:
        """Share of each prompt's tokens whose K/V on the host are brought to the device."""
        return 0.0 if self._planned is None else self._on_host - self.host_fraction

    @property
    def host_fraction(self) -> float:
        """Share of each prompt's tokens that the host's cores attend to."""
        return 0.0 if self._planned is None else self._planned.settings.host_share * self._on_host

    @property
    def _on_host(self) -> float:
        """Share of each prompt's tokens whose K/V are on the host."""
        assert self._planned is not None
        split = self._planned.settings.split
        return split.stream + split.host

    @property
    def weights_stream_fraction(self) -> float:
        """Share of the layers' weights that every forward brings to the device."""
        placed = self._attachment.placed
        return 0.0 if placed is None else placed.share

    @property
    def link_bytes_per_step(self) -> int:
        """Bytes that a decode step over the cache as it is brings to the device."""
        return self.paged.decode_program().link_bytes

    @property
    def peak_gpu_bytes(self) -> int:
        """Peak device memory: CUDA's own count; on a CPU, ``kept_gpu_bytes``."""
        device = next(self._model.parameters()).device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        return self.kept_gpu_bytes

    @property
    def kept_gpu_bytes(self) -> int:
        """Device memory of all that stays from step to step: weights, their slots, our buffers.

        What a forward takes for itself, and gives back, is not part of it.
        """
        device = next(self._model.parameters()).device
        tables = sum(table.size_bytes for table in self._attachment.rotary_tables)
        return device_bytes(self._model, device) + tables + self.paged.device_bytes

    # What a forward does. Our tensors outlive it, so they are neither part of a graph nor bound to
    # the mode of one forward, whatever the mode in which the caller runs the model.

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
        activations: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """Attend one layer's new tokens to the whole context (called by the attention function)."""
        return self.paged.attend(layer, activations, query, key, value, scoring)

    @property
    def decode(self) -> DecodeLayer | None:
        """What attends instead of ``attend_layer`` in the forward that has begun, if it may.

        Where all is on the device, a decode step needs neither X nor lanes.
        """
        assert self._paged is not None
        return self._paged.decode_flat if self._paged.decodes_flat else None

    @property
    def needs_activations(self) -> bool:
        """Whether X is kept of some tokens."""
        return self.recompute_fraction > 0

    def end_forward(self, failed: bool) -> None:
        """Finish the forward (called by the model's hook)."""
        self._running = False
        if failed:
            if self._paged is not None:
                self._paged.abandon_step()
            return
        assert self._paged is not None
        self._paged.end_step()
        self._broken = False

    def _open(
        self, workload: Workload, device: torch.device, prefill_tokens: int | None = None
    ) -> None:
        """Plan for a batch and take the memory for it.

        Args:
            workload: the batch.
            device: the model's.
            prefill_tokens: tokens of prompts that go through the model at once; None: as planned.
        """
        dtype = self._attachment.layers[0].observation.key.dtype
        self._planned = plan_cache(
            self._model,
            self._attachment,
            self._options,
            workload,
            device,
            dtype,
            prefill_tokens,
            replayed=self._replayed,
        )
        placed = self._attachment.placed
        if self._backend is None:
            self._backend = (
                open_backend(device, self._options.profile) if placed is None else placed.backend
            )
        self._reserve_rotary(workload.max_context)
        self._paged = PagedCache(
            self._backend,
            self._planned.settings,
            self._rebuild,
            workload.rows,
            workload.prompt_len,
            workload.generate_len,
            None if placed is None else placed.streamed,
        )
        if self._planned.replanner is not None:
            paths = POLICY_PATHS[self._planned.settings.policy]
            self.replanning = Replanning(self._paged, self._planned.replanner, paths=paths)
        self.trace(self._tracing)

    def _reserve_rotary(self, positions: int) -> None:
        if self.recompute_fraction > 0:
            for table in self._attachment.rotary_tables:
                table.reserve(positions, next(self._model.parameters()))

    def _rebuild(
        self, layer: int, activations: Tensor, positions: Tensor, *, rotated: bool = True
    ) -> Rebuilt:
        projection = self._attachment.projections[layer]
        assert isinstance(projection, LayerProjection)
        if rotated or not projection.rotates_last:
            return Rebuilt(*projection.rebuild(activations, positions))
        (key, value), (cos, sin) = projection.rebuild_unrotated(activations)
        return Rebuilt(key, value, Rotation(cos, sin, positions))

    def reset(self) -> None:
        """Forget everything, and give back all memory."""
        paged, backend = self._paged, self._backend
        self._paged = self._planned = self._backend = self.replanning = None
        self._broken = self._running = False
        # From the last one to the first, and each of them whatever became of the one before.
        with ExitStack() as ends:
            if backend is not None and self._attachment.placed is None:
                ends.callback(backend.close)
            if paged is not None:
                ends.callback(paged.release)
                # What failed under way has been reported to whoever waited for it.
                ends.enter_context(suppress(HeadraceError))
                paged.drain()

    # Its life

    def close(self) -> None:
        """Give back all memory and leave the model as it was; may be called again."""
        if not self._closed:
            self._closed = True
            try:
                self.reset()
            finally:
                detach(self._model)

    def __enter__(self) -> AttachedCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_backend(device: torch.device, profile: HardwareProfile | None) -> Backend:
    """Return the lanes of a device; a CPU's link is paced if the profile is of an emulated one."""
    if device.type == "cuda":
        return CudaBackend(device)
    if device.type != "cpu":
        raise UnsupportedModelError(
            f"the model is on device {device.type!r}; headrace runs on 'cuda' and 'cpu'"
        )
    if profile is not None and profile.origin is Origin.EMULATED:
        return CpuBackend(
            profile.h2d_bytes_per_s, profile.d2h_bytes_per_s, profile.host_attend_bytes_per_s
        )
    return CpuBackend()
