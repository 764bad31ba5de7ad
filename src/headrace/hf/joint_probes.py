"""What the link and the host's attention get of host memory while both are at work.

The device's engine and the host's cores read the same memory. How much that slows each of them is
measured with the kernel itself, at a model's shapes: cores that only read ask more of memory than
it does, since it also computes.
"""

from __future__ import annotations

import itertools
import statistics
from contextlib import ExitStack

import torch

from headrace.hardware.emulation import Pace
from headrace.hardware.probe_device import CpuProbeDevice, ProbeDevice, Work, busy, open_device
from headrace.hardware.profile import HardwareProfile
from headrace.hf.model_probes import host_attending, rebuilding
from headrace.hf.probe_timing import median_s
from headrace.model.shape import ModelShape

_BUFFER_BYTES = 1 << 27
_COPY_BYTES = 1 << 24
_COPIES_IN_A_ROW = 8
_LEAST_COPY_BYTES = 1 << 10
_LONGEST_COPY_S = 0.01
_REPEATS = 7


def host_attend_rate(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, profile: HardwareProfile
) -> float:
    """Measure once at which rate the host's cores attend while the link to the device is busy.

    In an emulation the copies are held to the link's pace, and the cores compute besides, as they
    are the device, too.

    Args:
        shape: the model.
        device: at the other end of the link.
        dtype: of keys and values.
        profile: what was measured so far: whether a link is emulated, and its rate.

    Returns:
        Bytes of keys and values a second.
    """
    attend, size_bytes = host_attending(shape, dtype)
    link = open_device(device.type)
    with ExitStack() as beside:
        if profile.emulates is None:
            beside.enter_context(busy(link, _copying(link, _COPY_BYTES)))
        else:
            # An emulated link is slow: short copies let it stop soon.
            chunk = max(_LEAST_COPY_BYTES, int(_LONGEST_COPY_S * profile.h2d_bytes_per_s))
            chunk = min(_COPY_BYTES, chunk)
            pace = Pace(h2d=profile.h2d_bytes_per_s)
            beside.enter_context(busy(link, pace.held(_copying(link, chunk), chunk)))
            beside.enter_context(busy(CpuProbeDevice(), rebuilding(shape, dtype)))
        seconds = median_s(attend, torch.device("cpu"))
    return size_bytes / seconds


def link_rate(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Measure once at which rate large copies reach the device while the host's cores attend.

    Args:
        shape: the model.
        device: at the other end of the link.
        dtype: of keys and values.

    Returns:
        Bytes a second.
    """
    attend, _ = host_attending(shape, dtype)
    link = open_device(device.type)
    copy = _copying(link, _COPY_BYTES)

    def copies() -> None:
        for _ in range(_COPIES_IN_A_ROW):
            copy()

    with busy(CpuProbeDevice(), attend):
        seconds = statistics.median(link.seconds(copies) for _ in range(_REPEATS))
    return _COPIES_IN_A_ROW * _COPY_BYTES / seconds


def _copying(link: ProbeDevice, size: int) -> Work:
    """Return work that copies ``size`` bytes to the device, each time others."""
    source, target = link.host_buffer(_BUFFER_BYTES), link.device_buffer(_BUFFER_BYTES)
    whole = _BUFFER_BYTES // size * size
    pairs = zip(target[:whole].split(size), source[:whole].split(size), strict=True)
    turns = itertools.cycle(list(pairs))
    return lambda: link.transfer(*next(turns))
