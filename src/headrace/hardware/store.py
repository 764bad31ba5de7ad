"""Where measured profiles are kept, and when one is measured again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from headrace.errors import ProfileError
from headrace.hardware.identity import local_identity
from headrace.hardware.probe_bench import Progress
from headrace.hardware.probe_device import open_device
from headrace.hardware.probe_figures import KVProjection
from headrace.hardware.probes import (
    DEFAULT_WIDTHS,
    ExtraProbes,
    add_extra_probes,
    profile_machine,
    without_extra,
)
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.profile_file import load_profile, save_profile


def cache_directory() -> Path:
    """Return the folder of stored profiles.

    It is ``profiles`` in ``$HEADRACE_CACHE``, else in ``$XDG_CACHE_HOME/headrace``, else in
    ``~/.cache/headrace``.
    """
    own, shared = os.environ.get("HEADRACE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        base = Path(own).expanduser()
    else:
        base = (Path(shared) if shared else Path.home() / ".cache") / "headrace"
    return base / "profiles"


def profile_path(
    device: str,
    shape: KVProjection | None = None,
    dtype: str | None = None,
    emulate: str | None = None,
    kind: str | None = None,
) -> Path:
    """Return where the profile for this device, shape and link is kept.

    Args:
        device: ``cpu`` or ``cuda``.
        shape: the model whose K/V projections are measured, or None for ``DEFAULT_WIDTHS``.
        dtype: element type; by default the shape's.
        emulate: the machine that is emulated, or None.
        kind: of model, where figures of its layers are in the profile, or None.
    """
    widths = shape or DEFAULT_WIDTHS
    link, of_kind = (f"-{part}" if part else "" for part in (emulate, kind))
    name = f"{device}{link}-{widths.d_model}x{widths.d_kv}-{dtype or widths.dtype}{of_kind}.json"
    return cache_directory() / name


def load_or_measure(
    device: str,
    shape: KVProjection | None = None,
    dtype: str | None = None,
    *,
    emulate: str | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    extra_probes: ExtraProbes | None = None,
    kind: str | None = None,
    measure: Callable[..., HardwareProfile] = profile_machine,
) -> HardwareProfile:
    """Return this machine's profile: the stored one while it holds, else a new one, then stored.

    A stored profile holds while the machine and the versions of torch and headrace are the same.
    One that was measured quickly does not stand in for a full one. Extra probes that a stored
    profile lacks are measured and added. What does not depend on the kind of model is measured once
    for all kinds of the same widths.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        shape: the model whose K/V projections are measured, or None for ``DEFAULT_WIDTHS``.
        dtype: element type; by default the shape's.
        emulate: the machine that is emulated, or None.
        quick: measure in under 10 s instead of under 60.
        progress: is called with a line of text for each figure, and with why anything is measured
            again or cannot be stored.
        extra_probes: see ``headrace.hardware.probes.add_extra_probes``.
        kind: of model, whose figures extra probes measure (``ModelShape.kind``); None: no model's.
        measure: what measures, for tests.

    Raises:
        ConfigurationError: there is no such device or element type, or a link is to be emulated
            on a GPU.
        ProfileError: ``emulate`` names no published machine.
    """
    say = progress or (lambda _: None)
    extra = extra_probes or {}
    opened = open_device(device)
    path = profile_path(opened.name, shape, dtype, emulate, kind)
    stored, reason = _stored(path, opened.name, emulate, quick)
    known = stored
    if stored is None and kind is not None:
        stored = without_extra(
            load_or_measure(
                device,
                shape,
                dtype,
                emulate=emulate,
                quick=quick,
                progress=progress,
                measure=measure,
            )
        )
    if stored is None:
        say(f"measuring this machine: {reason}")
        profile = measure(
            opened.name,
            shape,
            dtype,
            emulate=emulate,
            quick=quick,
            progress=progress,
            extra_probes=extra,
        )
    else:
        lacking = {name: extra[name] for name in extra if not stored.is_measured(name)}
        profile = add_extra_probes(stored, lacking, progress=progress)
    if profile is not known:
        try:
            save_profile(profile, path)
        except ProfileError as error:
            say(f"the profile is used now but not kept: {error}")
    return profile


def _stored(
    path: Path, device: str, emulate: str | None, quick: bool
) -> tuple[HardwareProfile | None, str]:
    """Return the stored profile if it holds, else None and why not."""
    if not path.exists():
        return None, f"there is no profile at {path}"
    try:
        profile = load_profile(path)
    except ProfileError as error:
        return None, str(error)
    if (profile.device, profile.emulates) != (device, emulate) or profile.identity is None:
        return None, f"the profile at {path} is of something else"
    changes = profile.identity.changes(local_identity(open_device(device).gpu))
    if changes:
        return None, f"the profile at {path} is out of date ({'; '.join(changes)})"
    if profile.quick and not quick:
        return None, f"the profile at {path} was measured quickly"
    return profile, ""
