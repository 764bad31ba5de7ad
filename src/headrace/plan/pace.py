"""What finite staging makes of a step: an estimate between the linear program and the simulation.

The link runs ahead of the device by what the ring holds, r bytes. While the device does work that
reads no staging slot (dense layers, what is on the device anyway) the ring fills up, and then the
link waits; after that the device may have to wait for the link. A layer that attends to the whole
context goes through

    a pause of P seconds     dense work, and what comes before it in windowed layers and the head
    its attention            on the device R seconds of what stays there and A of what is staged,
                             while the host attends for H seconds

With L seconds of loads a layer and a lead of the link of at most r/B, that is followed from layer
to layer here, as if work and data flowed evenly. Each copy and each kernel has its latency. While a
granule of X is rebuilt and others are streamed, a part of the ring is needed to bridge that, and
where it does not suffice the device waits after every one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    kv_bytes_per_token,
    rebuild_weight_bytes,
)
from headrace.model.shape import LayerGroup
from headrace.plan.demands import cache_loads, host_attention
from headrace.plan.device_time import DeviceTime, mail_bytes
from headrace.plan.flow import LayerFlow, StepFlow
from headrace.plan.geometry import Geometry, Pace
from headrace.plan.launching import Launching, granules_of, total
from headrace.plan.program import Optimum
from headrace.plan.resources import Resource, Term
from headrace.plan.sharing import Sharing
from headrace.plan.step_work import PATHS, StepWork, column
from headrace.plan.weights import weight_slots

_BISECTIONS = 10

_AS_GOOD = 1.003
"""A ring is long enough if a longer one would make the step shorter by less than this."""


class StepEstimate:
    """Estimates for one solution of the linear program.

    Args:
        work: the step.
        profile: the machine.
        optimum: the solution.
    """

    def __init__(self, work: StepWork, profile: HardwareProfile, optimum: Optimum) -> None:
        self._work = work
        self._profile = profile
        self._optimum = optimum
        self._layers = max(1, work.shape.full_layers)
        self._groups = work.shape.groups
        self._values = optimum.columns(self._groups)
        self._link_s = optimum.seconds[Resource.LINK]
        self._device = DeviceTime(work, profile)
        self._launching = Launching(profile)
        self._kept = tuple(self._device.cached(("resident",)))
        self._staged = tuple(self._device.cached(("stream", "recompute")))
        self._loads = tuple(cache_loads(work, profile, ("stream", "recompute")))
        self._cores = tuple(host_attention(work, profile))

    def pace(self) -> Pace:
        """Return what this asks of staging, so that the program's time can be reached."""
        if self._work.serial:
            return Pace()
        flow = self._flow(0.0, 0.0, 0.0)
        most_s = sum(layer.pause + layer.kept + layer.loads for layer in flow.layers)
        enough_s, least_s, best_s = most_s, 0.0, flow.seconds(most_s)
        for _ in range(_BISECTIONS):
            middle_s = (enough_s + least_s) / 2
            if flow.seconds(middle_s) <= _AS_GOOD * best_s:
                enough_s = middle_s
            else:
                least_s = middle_s
        return Pace(enough_s * self._profile.h2d_bytes_per_s, self._rebuild_loads())

    def _rebuild_loads(self) -> float:
        """Return the seconds of the device for each second in which the link brings X."""
        most = 0.0
        for group in self._groups:
            x_bytes = activation_bytes_per_token(group.shape)
            rebuilt = self._device.rebuilt_token_s(group.shape)
            most = max(most, rebuilt * self._profile.h2d_bytes_per_s / x_bytes)
        return most

    def launch_s(self, geometry: Geometry) -> float:
        """Return how long launching a step takes the thread that does it.

        0 on a CPU, where a call is part of its work. On a GPU the work hides it, as long as whoever
        launches is quick enough. Where it was not measured in steps, it is that of the granules, as
        calls in a row take it.
        """
        profile = self._profile
        if profile.device != "cuda":
            return 0.0
        if self._launching.measured:
            return self._launching.step_s(
                self._work,
                geometry,
                self._optimum.splits,
                streams_weights=self._optimum.weights_streamed > 0,
            )
        streams, rebuilds = self.granules(geometry)
        attend_s = (profile.attend_call_s or 0.0) + (profile.load_call_s or 0.0)
        return (streams + rebuilds) * attend_s + rebuilds * (profile.rebuild_call_s or 0.0)

    def granules(self, geometry: Geometry) -> tuple[float, float]:
        """Return the loads of K/V and of X in a step."""
        return total(granules_of(self._work, geometry, self._optimum.splits))

    def seconds(self, geometry: Geometry) -> float:
        """Return about how long a step takes where the cache is cut in a given way."""
        if self._launching.measured:
            return max(self._worked_s(geometry), self.launch_s(geometry))
        return self._worked_s(geometry)

    def _worked_s(self, geometry: Geometry) -> float:
        """Return the same for a thread that launches all at once."""
        profile = self._profile
        streams, rebuilds = self.granules(geometry)
        rebuild_s, read_s = self._rebuilt(geometry)
        copies_s = (streams + rebuilds) * profile.copy_latency_s
        # A slot holds what was loaded into it, which for X may be less than fits.
        cache_s = sum(self._group_s(group, self._loads) for group in self._groups)
        slot_s = cache_s / max(1.0, streams + rebuilds)
        if self._work.serial:
            # What the ring does not hold of a layer is loaded when all rebuilding is done.
            turns = self._layers * self._work.passes
            beyond = max(0.0, streams + rebuilds - turns * geometry.ring_slots)
            return self._optimum.step_s + copies_s + beyond * slot_s
        ahead_s = (geometry.ring_slots - 1) * slot_s
        if self._optimum.weights_streamed > 0:
            # Loads are in order, so no further ahead than weights have slots; without others, as
            # far as those.
            slots_s = self._weight_slots_s()
            ahead_s = min(ahead_s, slots_s) if cache_s else slots_s
        staged_s = self._calls_s(streams, rebuilds) + read_s
        if streams and rebuilds:
            # After each granule of X the device waits for what could not be loaded meanwhile.
            meanwhile_s = rebuilds * (geometry.ring_slots - 2) * slot_s
            staged_s += max(0.0, self._link_s + copies_s - meanwhile_s)
            ahead_s = max(slot_s, ahead_s - rebuild_s)
        hosts = self._work.batches * self._layers if self._hosts else 0
        flow = self._flow(copies_s, staged_s, 2 * hosts * profile.copy_latency_s)
        flowing_s = self._work.passes * flow.seconds(ahead_s)
        return max(self._optimum.step_s, self._link_s + copies_s, flowing_s)

    def _weight_slots_s(self) -> float:
        """Return the loads of the layers whose weights can be there before they are needed."""
        shape = self._work.shape
        turns = self._work.passes * shape.num_layers
        return (weight_slots(shape) - 1) * self._link_s / turns

    def _calls_s(self, streams: float, rebuilds: float) -> float:
        """Return what the device's calls for so many granules take besides their work."""
        profile, work = self._profile, self._work
        rebuild_s = sum(
            split.recompute * work.paged_tokens * one.layers * self._device.rebuild_s(one.shape)
            for one, split in zip(self._groups, self._optimum.splits, strict=True)
        )
        attend_s = sum(self._group_s(one, self._staged) for one in self._groups) - rebuild_s
        stream_s, rebuild_call_s = (
            None if call_s is None else call_s + (profile.load_call_s or 0.0)
            for call_s in (profile.attend_call_s, profile.rebuild_call_s)
        )
        besides_s = 0.0
        for calls, work_s, call_s in (
            (streams, attend_s * streams / max(1.0, streams + rebuilds), stream_s),
            (rebuilds, attend_s * rebuilds / max(1.0, streams + rebuilds), profile.attend_call_s),
            (rebuilds, rebuild_s, rebuild_call_s),
        ):
            if calls:
                besides_s += calls * profile.duration_s(work_s / calls, call_s) - work_s
        return besides_s

    @property
    def _hosts(self) -> bool:
        return any(split.host > 0 for split in self._optimum.splits)

    def _flow(self, copies_s: float, staged_s: float, hosts_s: float) -> StepFlow:
        """Return the flow of a pass, with some seconds of a step besides the work itself."""
        units = self._work.passes * self._layers
        new_s = self._sum(self._device.new_tokens(windowed=False)) / units
        weights_s = self._link_s - sum(self._group_s(one, self._loads) for one in self._groups)
        of_group = {}
        for group in self._groups:
            kept, staged, loads, host = (
                self._group_s(group, terms) / (group.layers * self._work.passes)
                for terms in (self._kept, self._staged, self._loads, self._cores)
            )
            of_group[group.shape] = LayerFlow(
                0.0,
                kept + new_s,
                staged + staged_s / units,
                loads + (weights_s + copies_s) / units,
                host + hosts_s / units + self._results_s(group) if host else 0.0,
            )
        shape = self._work.shape
        nothing = LayerFlow(0.0, 0.0, 0.0, self._link_s / units, 0.0)
        full = [
            of_group[layer]
            for index, layer in enumerate(shape.layers)
            if index not in shape.windowed_indices
        ]
        # Layers that are alike are one object, so that what they take is found once.
        alike: dict[tuple[int, float], LayerFlow] = {}
        layers = []
        for layer, pause in zip(full or [nothing], self._pauses(), strict=True):
            if (id(layer), pause) not in alike:
                alike[id(layer), pause] = replace(layer, pause=pause)
            layers.append(alike[id(layer), pause])
        link_share, cores_share = self._shares()
        return StepFlow(tuple(layers), link_share, cores_share)

    def _shares(self) -> tuple[float, float]:
        """Return the shares of their rates at which link and cores go on beside each other."""
        if not self._hosts:
            return 1.0, 1.0
        cores_s = sum(self._group_s(group, self._cores) for group in self._groups)
        idle_s = self._optimum.seconds[Resource.HOST] - cores_s
        return Sharing(self._profile).shares(self._link_s, cores_s, idle_s)

    def _results_s(self, group: LayerGroup) -> float:
        """Return the seconds of queries and results of one layer, in a pass."""
        size_bytes = self._work.rows * mail_bytes(group.shape) / self._work.passes
        return size_bytes / self._profile.mail_rate

    def _pauses(self) -> tuple[float, ...]:
        """Return, for each full layer, the device's other work since the full layer before it."""
        shape = self._work.shape
        profile = self._profile
        launch_s = 0.0 if profile.attend_call_s is not None else 3 * profile.launch_latency_s
        full_s, windowed_s = (self._layer_s(windowed=which) + launch_s for which in (False, True))
        pauses: list[float] = []
        pending = self._sum(self._device.head()) / self._work.passes
        for layer in range(shape.num_layers):
            if layer in shape.windowed_indices:
                pending += windowed_s
            else:
                pauses.append(pending + full_s)
                pending = 0.0
        if not pauses:
            return (pending,)
        pauses[0] += pending
        return tuple(pauses)

    def _layer_s(self, *, windowed: bool) -> float:
        """Return the dense work of one layer, and what a windowed one attends to, in a pass."""
        shape = self._work.shape
        count = shape.windowed_layers if windowed else shape.full_layers
        seconds = self._sum(self._device.dense_layers(windowed=windowed))
        if windowed:
            seconds += self._sum(self._device.new_tokens(windowed=True))
        return seconds / (count * self._work.passes) if count else 0.0

    def _group_s(self, group: LayerGroup, terms: tuple[Term, ...]) -> float:
        """Return the seconds of a group of layers in a step."""
        groups = len(self._groups)
        names = {column(path, group, groups) for path in PATHS}
        return sum(
            term.seconds * self._values[term.column] for term in terms if term.column in names
        )

    @staticmethod
    def _sum(terms: Iterable[Term]) -> float:
        """Return the seconds of work that no column changes."""
        return sum(term.seconds for term in terms)

    def _rebuilt(self, geometry: Geometry) -> tuple[float, float]:
        """Return the seconds for which the longest granule of X keeps the device busy.

        And those by which small ones make rebuilding slower: each reads the projections' weights.
        """
        longest_s = read_s = 0.0
        for found in granules_of(self._work, geometry, self._optimum.splits):
            if found.rebuilds:
                group, tokens = found.group, found.rebuilt_tokens
                longest_s = max(longest_s, tokens * self._device.rebuilt_token_s(group.shape))
                read_s += found.rebuilds * self._weights_s(group, tokens)
        return longest_s, read_s

    def _weights_s(self, group: LayerGroup, tokens: float) -> float:
        """Return by how much reading the weights prolongs the rebuilding of some tokens."""
        shape, device_bytes_per_s = group.shape, self._profile.device_bytes_per_s
        rebuild_s = tokens * self._device.rebuild_s(shape)
        moved = kv_bytes_per_token(shape) + activation_bytes_per_token(shape)
        read_s = (rebuild_weight_bytes(shape) + tokens * moved) / device_bytes_per_s
        return max(0.0, read_s - rebuild_s)
