"""The epochs of a trial, as its folder keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convwright.errors import RunError
from convwright.strict_json import parse
from convwright.training.outcome import EpochRecord

HISTORY = "history.json"  # of a trial: one record per epoch


def plain_epoch(record: EpochRecord) -> dict[str, Any]:
    """Return an epoch as plain JSON values; what is not finite is None."""
    return {k: v if v is not None and math.isfinite(v) else None for k, v in asdict(record).items()}


def read_history(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Read the epochs of a trial.

    Raises:
        RunError: The file is damaged.
    """
    try:
        return tuple(epoch_of(each) for each in parse(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: damaged, it holds no epochs; remove it, and its curve is left out") from error


def epoch_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is recorded of an epoch.

    Raises:
        KeyError, TypeError: Something is missing, or no number.
    """
    found = {name: values[name] for name in ("train_loss", "train_acc", "val_loss", "val_acc", "seconds")}
    if not all(value is None or type(value) in (int, float) for value in found.values()):
        raise TypeError("what stands there is no number")
    return found
