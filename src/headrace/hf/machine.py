"""The profile of the machine that a model runs on, measured at the model's own shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from torch import nn

from headrace.hardware.probes import CURVES, ExtraProbes
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.store import load_or_measure
from headrace.hf import model_probes, step_probes
from headrace.hf.attachment import attached
from headrace.hf.host_probes import HostProbes
from headrace.hf.launch_probes import LaunchProbes
from headrace.hf.mail_probes import MailProbes
from headrace.hf.shape import model_shape
from headrace.hf.slice import small_model_of
from headrace.hf.weights import placed_weights
from headrace.model.shape import ModelShape


def shape_of(model: nn.Module) -> ModelShape:
    """Return the shape of a loaded model, in the dtype of its weights.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    with attached(model) as attachment:
        return model_shape(model, attachment, next(model.parameters()).dtype)


def machine_profile(
    model: nn.Module,
    *,
    emulate: str | None = None,
    quick: bool = True,
    progress: Callable[[str], None] | None = None,
) -> HardwareProfile:
    """Return this machine's profile at a model's shapes, measured if none is kept.

    Args:
        model: on the device that is to be measured.
        emulate: a published machine that is emulated, or None.
        quick: measure the machine itself in under 10 s; the model's own figures come on top.
        progress: is called with a line of text for each figure.
    """
    placed = placed_weights(model)
    if placed is not None:
        # Of a layer's weights, only a slot's worth is on the device: others like them are measured.
        model = small_model_of(model, placed.backend.device)
    parameter = next(model.parameters())
    with attached(model):
        shape = shape_of(model)
        cache = (shape, parameter.device, parameter.dtype)
        with closing(HostProbes(*cache)) as host:
            return load_or_measure(
                parameter.device.type,
                shape,
                emulate=emulate,
                quick=quick,
                progress=progress,
                kind=shape.kind,
                extra_probes={
                    "attend_bytes_per_s": lambda _: model_probes.attend_rate(*cache),
                    "resident_attend_bytes_per_s": lambda _: model_probes.resident_attend_rate(
                        *cache
                    ),
                    "attend_call_s": lambda _: model_probes.attend_call_s(*cache),
                    **host.by_name(),
                    **MailProbes(*cache).by_name(),
                    "load_call_s": lambda _: model_probes.load_call_s(*cache[1:]),
                    **LaunchProbes(model, shape, host.attending).by_name(),
                    **dense_probes(model, shape),
                    "rebuild_flops_per_s": lambda _: model_probes.rebuild_rate(model, shape),
                    "rebuild_call_s": lambda _: model_probes.rebuild_call_s(model, shape),
                },
            )


def dense_probes(model: nn.Module, shape: ModelShape) -> ExtraProbes:
    """Return probes of a step's dense work, by rows, with waits and on the short way.

    Args:
        model: on the device that is to be measured.
        shape: its shape.
    """

    def probe(rows: int, resident: bool) -> Callable[[HardwareProfile], float]:
        return lambda _: step_probes.dense_rate(model, shape, rows, resident=resident)

    return {
        f"{curve}[{rows}]": probe(rows, curve == "resident_curve")
        for curve in CURVES
        for rows in step_probes.dense_rows(next(model.parameters()).device)
    }
