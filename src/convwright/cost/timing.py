"""Times as statistics: how often something is run, and what the samples say.

A time on a shared machine is a sample with a long upper tail, so what is reported is the median with a 95%
interval from order statistics, which assumes no distribution.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from convwright.errors import ConvwrightError

_Key = TypeVar("_Key")
Timer = Callable[[Callable[[], object], int], float]  # (function, calls) -> seconds per call

LEAST = 6  # samples: with fewer, no interval between two of them covers the median with 95%
_RESOLUTION = 50e-6  # seconds that one sample should last: the clock's own cost must not show
_MOST_CALLS = 100  # in one sample


@dataclass(frozen=True)
class Spread:
    """The median of samples, with the interval that holds the true median with a probability of 95% or more.

    Attributes:
        median: seconds (or a ratio of seconds).
        lower: lower end of the interval; the smallest sample where there are fewer than 6.
        upper: upper end; the largest sample where there are fewer than 6.
        repeats: number of samples.
    """

    median: float
    lower: float
    upper: float
    repeats: int


def spread(samples: Sequence[float]) -> Spread:
    """Return median and interval of samples.

    Raises:
        ConvwrightError: if there is no sample, or one is not finite.
    """
    if not samples or not all(map(math.isfinite, samples)):
        raise ConvwrightError("a median needs at least one sample, all of them finite; measure again.")
    ordered, count = sorted(samples), len(samples)
    # The k-th smallest sample lies above the true median only if fewer than k samples lie below it, and their number is
    # binomial with p = 1/2. The largest k is taken for which that has a probability of at most 2.5%.
    below = itertools.accumulate(math.comb(count, k) for k in range(count))
    rank = max(sum(ways * 40 <= 2**count for ways in below) - 1, 0)
    return Spread(statistics.median(ordered), ordered[rank], ordered[-1 - rank], count)


def wall_timer(device: torch.device) -> Timer:
    """Return what times calls on a device: events on CUDA, else the clock, with nothing left in flight."""
    if device.type == "cuda":
        return _cuda_timer
    if device.type != "cpu":
        return lambda function, calls: _clocked(function, calls, lambda: torch.accelerator.synchronize(device))
    return lambda function, calls: _clocked(function, calls, lambda: None)


def _clocked(function: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter_ns()
    for _ in range(calls):
        function()
    wait()
    return (time.perf_counter_ns() - start) / calls / 1e9


def _cuda_timer(function: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls / 1e3


def calls_per_sample(once: float) -> int:
    """Return how many calls make a sample that is long enough, given the seconds of one call."""
    return min(_MOST_CALLS, max(1, math.ceil(_RESOLUTION / max(once, 1e-9))))


def in_turns(sample: Mapping[_Key, Callable[[], float]], seconds: float, most: int) -> dict[_Key, list[float]]:
    """Take samples in turns (A B A B ...), until there are enough of each; return them turn by turn."""
    found: dict[_Key, list[float]] = {key: [] for key in sample}
    start = time.monotonic()
    while found and not enough(next(iter(found.values())), time.monotonic() - start, seconds, most):
        for key, take in sample.items():
            found[key].append(take())
    return found


def enough(samples: Sequence[float], spent: float, seconds: float, most: int) -> bool:
    """Return whether sampling may end: after 6 samples, when the time or the number is used up."""
    return len(samples) >= min(LEAST, most) and (spent >= seconds or len(samples) >= most)
