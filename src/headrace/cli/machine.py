"""The options that say which machine is meant and how much of it may be used."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headrace.cli.output import Progress
from headrace.engine.request import MAX_ROWS
from headrace.errors import ConfigurationError
from headrace.model.shape import DTYPE_BYTES
from headrace.units import parse_bytes

if TYPE_CHECKING:
    from headrace.cli.parser import Options
    from headrace.hardware.probe_figures import KVProjection
    from headrace.hardware.probes import ExtraProbes
    from headrace.hardware.profile import HardwareProfile

DEVICES = ("auto", "cpu", "cuda")


def add_device(parser: Options) -> None:
    """Add ``--device`` and ``--emulate``."""
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where the model runs (default: auto)"
    )
    parser.add_argument(
        "--emulate",
        metavar="NAME",
        help="slow link and host's cores down, on a CPU, to compare with rebuilding as on "
        "this published machine; all figures are then labelled emulated",
    )


def add_hardware(parser: Options) -> None:
    """Add ``--hardware``."""
    parser.add_argument(
        "--hardware",
        metavar="NAME|FILE",
        help="a published machine, or a file that `headrace profile --output` wrote "
        "(default: this machine, measured if need be)",
    )


def add_memory(parser: Options) -> None:
    """Add ``--gpu-memory`` and ``--host-memory``."""
    parser.add_argument(
        "--gpu-memory", metavar="SIZE", help="device memory to use, such as 16GiB (default: all)"
    )
    parser.add_argument(
        "--host-memory", metavar="SIZE", help="host memory to use, such as 64GiB (default: all)"
    )


def add_max_rows(parser: Options) -> None:
    """Add ``--max-rows``."""
    parser.add_argument(
        "--max-rows",
        type=int,
        default=MAX_ROWS,
        metavar="N",
        help=f"most rows at once; each sample of a prompt is one (default: {MAX_ROWS})",
    )


def add_dtype(parser: Options) -> None:
    """Add ``--dtype``."""
    parser.add_argument(
        "--dtype", choices=tuple(DTYPE_BYTES), help="element type (default: the model's own)"
    )


def device(args: argparse.Namespace) -> str:
    """Return ``auto``, ``cpu`` or ``cuda``; where a link is emulated, ``auto`` means the CPU."""
    return "cpu" if args.emulate and args.device == "auto" else str(args.device)


def gpu_memory_bytes(args: argparse.Namespace) -> int | None:
    """Return what ``--gpu-memory`` says, or None.

    Raises:
        ConfigurationError: it is not a size.
    """
    return _size(args.gpu_memory, "--gpu-memory")


def host_memory_bytes(args: argparse.Namespace) -> int | None:
    """Return what ``--host-memory`` says, or None.

    Raises:
        ConfigurationError: it is not a size.
    """
    return _size(args.host_memory, "--host-memory")


def max_rows(args: argparse.Namespace) -> int:
    """Return what ``--max-rows`` says.

    Raises:
        ConfigurationError: it is below 1.
    """
    if args.max_rows < 1:
        raise ConfigurationError(f"--max-rows is {args.max_rows}; allowed is 1 or more")
    return int(args.max_rows)


def _size(text: str | None, option: str) -> int | None:
    size_bytes = None if text is None else parse_bytes(text, setting=option)
    if size_bytes == 0:
        raise ConfigurationError(f"{option} is {text!r}; it must be above 0, or be left out")
    return size_bytes


def profile(
    args: argparse.Namespace,
    shape: KVProjection | None,
    progress: Progress,
    *,
    quick: bool = True,
    dtype: str | None = None,
    extra_probes: ExtraProbes | None = None,
) -> HardwareProfile:
    """Return the profile that the options ask for: published, from a file, or of this machine.

    Without ``--hardware`` this imports torch, and measures where no stored profile holds.

    Args:
        args: with ``device`` and ``emulate``, and perhaps ``hardware``.
        shape: the model whose K/V projections are measured, or None for usual widths.
        progress: is told what is measured.
        quick: whether a quick measurement will do.
        dtype: element type; by default the shape's.
        extra_probes: what is measured besides, where it is this machine's profile.

    Raises:
        ConfigurationError: options contradict each other, or there is no such device.
        ProfileError: there is no such machine, or the file holds no profile.
    """
    from headrace.hardware.catalog import machine, resolve

    hardware = getattr(args, "hardware", None)
    if hardware is not None:
        for option, given in (("--device", args.device != "auto"), ("--emulate", args.emulate)):
            if given:
                raise ConfigurationError(
                    f"--hardware {hardware} and {option} were both given; {option} says how to "
                    "measure this machine, so leave one of them out"
                )
        return resolve(hardware)
    if args.emulate is not None:
        machine(args.emulate)
    from headrace.hardware.store import load_or_measure

    return load_or_measure(
        device(args),
        shape,
        dtype,
        emulate=args.emulate,
        quick=quick,
        progress=progress,
        extra_probes=extra_probes,
        kind=getattr(shape, "kind", None),
    )
