"""What a result was measured with: hardware, versions, commit, date."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import headrace
from headrace.hardware.identity import local_identity


def environment() -> dict[str, Any]:
    """Return hardware, versions, commit and date, for a results file."""
    identity = local_identity()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": identity.cpu_model,
        "cpu_cores": identity.cpu_cores,
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "headrace": headrace.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the commit of the source tree, or None where it is not one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # installed, perhaps below the source tree of something else
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
