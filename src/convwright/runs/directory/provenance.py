"""What a run was made with: versions and machine, recorded beside every result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from convwright.cost.latency_table import processor

# How networks are judged, recorded beside every score; what has no number was judged by 1. It is raised whenever the
# same network would get another score, so that no run goes on with scores of two kinds.
# Version 2 re-estimates batch norm after edits that change the function, and after short trainings.
JUDGEMENT = 2
_PACKAGES = ("convwright", "torch", "torchvision", "timm", "numpy", "lightning-fabric", "optuna", "safetensors")


def portable(command: str) -> str:
    """Leave the folders of one person's machine out of a command: anybody can give it as it then stands."""
    shorter = re.sub(r" --(out|data-dir)[ =]\S+", "", command)
    return re.sub(r"( --data[ =]folder:)\S+", r"\1PATH", shorter)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on; in a checkout, its commit, too."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, **({"commit": found} if (found := _commit()) else {})}


def machine() -> dict[str, Any]:
    """Return what the seconds depend on; no names of hosts or users."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor() or platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def _commit() -> str:
    """Return the commit of the checkout that the package runs from, with a + where files were changed since."""
    package = Path(__file__).parents[1]
    root = package.parents[1]
    if package.parent.name != "src" or not (root / ".git").exists():  # installed: the user's repository is not ours
        return ""
    ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout that it does not trust
        return ""
