"""``headrace profile``: measure this machine, or show what was measured."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli import machine, output
from headrace.cli.models import resolve_shape
from headrace.cli.profile_text import profile_text
from headrace.errors import ConfigurationError, ProfileError

if TYPE_CHECKING:
    from headrace.cli.parser import Subparsers
    from headrace.hardware.probes import ExtraProbes
    from headrace.hardware.profile import HardwareProfile
    from headrace.model.shape import ModelShape

_WIDTHS = "that of a model of 7 billion parameters"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "profile",
        help="measure this machine",
        description="Measure this machine's links, matrix products and memories, each alone and "
        "while others are busy, and keep the figures for planning. A stored profile is shown as "
        "long as machine and versions are the same.",
    )
    machine.add_device(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="measure matrix products of this model's K/V projections, and the host's attention to "
        f"its K/V, alone and beside the link (default: {_WIDTHS}, no attention)",
    )
    machine.add_dtype(parser)
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and repeats: under 10 s instead of 60"
    )
    parser.add_argument(
        "--force", action="store_true", help="measure anew, even if a stored profile holds"
    )
    parser.add_argument("--output", metavar="FILE", help="write the profile to this file, too")
    output.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, or load, and show the profile."""
    from headrace.hardware.profile_file import profile_to_json, save_profile

    _check_output(args.output)
    shape = None if args.model is None else resolve_shape(args.model, args.dtype)
    with output.Progress(args) as progress:
        profile = _profile(args, shape, progress)
    kept = _kept_at(args, shape, profile)
    if args.output is not None:
        save_profile(profile, args.output)
        kept = Path(args.output)
    data = {**profile_to_json(profile), "path": None if kept is None else str(kept)}
    output.emit(args, data, profile_text(profile, kept))
    return 0


def _check_output(path: str | None) -> None:
    """Refuse a place that cannot be written to before a minute is spent on measuring."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"--output is {path!r}, which cannot be written; give a file in a folder of yours"
        )


def _profile(
    args: argparse.Namespace, shape: ModelShape | None, progress: output.Progress
) -> HardwareProfile:
    if args.force:
        return _measured_anew(args, shape, progress)
    return machine.profile(
        args,
        shape,
        progress,
        quick=args.quick,
        dtype=args.dtype,
        extra_probes=_extra_probes(args, shape),
    )


def _extra_probes(args: argparse.Namespace, shape: ModelShape | None) -> ExtraProbes:
    """Return probes of the host's attention at the model's shapes; without a model, none."""
    if shape is None:
        return {}
    import torch

    from headrace.hardware.probe_device import resolve_device
    from headrace.hf.host_probes import HostProbes

    device = torch.device(resolve_device(machine.device(args)))
    return HostProbes(shape, device, getattr(torch, shape.dtype)).by_name()


def _measured_anew(
    args: argparse.Namespace, shape: ModelShape | None, progress: output.Progress
) -> HardwareProfile:
    """Measure and store, whatever is stored."""
    from headrace.hardware.catalog import machine as published
    from headrace.hardware.probes import profile_machine
    from headrace.hardware.profile_file import save_profile

    if args.emulate is not None:
        published(args.emulate)
    profile = profile_machine(
        machine.device(args),
        shape,
        args.dtype,
        emulate=args.emulate,
        quick=args.quick,
        progress=progress,
        extra_probes=_extra_probes(args, shape),
    )
    try:
        save_profile(profile, _path(args, shape, profile))
    except ProfileError as error:
        progress(f"the profile is not kept: {error}")
    return profile


def _path(args: argparse.Namespace, shape: ModelShape | None, profile: HardwareProfile) -> Path:
    from headrace.hardware.store import profile_path

    kind = None if shape is None else shape.kind
    return profile_path(profile.device, shape, args.dtype, args.emulate, kind)


def _kept_at(
    args: argparse.Namespace, shape: ModelShape | None, profile: HardwareProfile
) -> Path | None:
    """Return where the profile is stored, or None if the store could not be written."""
    from headrace.hardware.profile_file import load_profile

    path = _path(args, shape, profile)
    try:
        return path if load_profile(path) == profile else None
    except ProfileError:
        return None
