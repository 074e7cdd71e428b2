"""Learning rates as pure functions of the step: a checkpoint need not hold a schedule's state."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, float], float]
_START, _END = 1 / 25, 1 / 25 / 1e4  # the defaults of torch's OneCycleLR


def _between(start: float, end: float, share: float) -> float:
    """Return the cosine interpolation from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def onecycle(step: int, total: int, warmup: float) -> float:
    """One cycle (Smith 2018): up for the share `warmup` of all steps, then down almost to zero.

    Equals torch's OneCycleLR with cosine annealing; momentum is left constant.
    """
    top = max(warmup * total - 1, 0.0)
    if step < top:
        return _between(_START, 1.0, step / top)
    return _between(1.0, _END, (step - top) / max(total - 1 - top, 1e-9))


def cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the share `warmup`, then half a cosine down to zero."""
    start = warmup * total
    if step < start:
        return (step + 1) / (math.floor(start) + 1)
    return _between(1.0, 0.0, (step - start) / max(total - start, 1e-9))


def constant(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the share `warmup`, then the same rate."""
    return min((step + 1) / (math.floor(warmup * total) + 1), 1.0)


SCHEDULES: dict[str, Schedule] = {"onecycle": onecycle, "cosine": cosine, "constant": constant}
