"""Latency of whole networks: measured on a runtime, with the noise stated.

A time on a shared machine is a sample with a long upper tail, so what is reported is the median with a 95%
interval from order statistics, which assumes no distribution.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import in_mode
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes import RunnableProgram, Target, Timer, program
from convwright.errors import ConvwrightError, first_line

_Key = TypeVar("_Key")

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
    """Take samples in turns, until there are enough of each; return them turn by turn.

    The order is drawn anew for each turn: on a busy machine the scheduler gives time in slices of some milliseconds,
    and in a fixed order it would be the same networks again and again that wait.
    """
    found: dict[_Key, list[float]] = {key: [] for key in sample}
    start, draw, keys = time.monotonic(), random.Random(0), list(sample)
    while found and not enough(found[keys[0]], time.monotonic() - start, seconds, most):
        draw.shuffle(keys)
        for key in keys:
            found[key].append(sample[key]())
    return found


def enough(samples: Sequence[float], spent: float, seconds: float, most: int) -> bool:
    """Return whether sampling may end: after 6 samples, when the time or the number is used up."""
    return len(samples) >= min(LEAST, most) and (spent >= seconds or len(samples) >= most)


@dataclass(frozen=True)
class Latency(Spread):
    """How long one forward pass takes.

    Attributes:
        median: seconds.
        lower: lower end of the 95% interval of the median, by order statistics.
        upper: its upper end.
        repeats: number of samples.
        threads: that it may use.
        device: ``cpu``, ``cuda:0``, ...
        dtype: of the input.
        backend: what ran it, such as ``eager`` or ``openvino,int8``.
    """

    threads: int
    device: str
    dtype: str
    backend: str = "eager"

    @property
    def nanoseconds(self) -> int:
        """The median in whole nanoseconds, as budgets hold it."""
        return round(self.median * 1e9)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Latencies of several networks that were measured in turns.

    Attributes:
        latencies: per name.
        ratios: per name, its time over the first network's, paired turn by turn: noise that lasts longer than a turn
            hits both alike and cancels.
    """

    latencies: dict[str, Latency]
    ratios: dict[str, Spread]


def measure_latency(
    model: nn.Module,
    example_input: Tensor | Inputs,
    *,
    backend: str | Target = "eager",
    repeats: int = 100,
    seconds: float = 3.0,
    warmup: int = 3,
    timer: Timer | None = None,
) -> Latency:
    """Measure the forward pass of a network in eval mode.

    Args:
        model: the network, on the device to measure; every module gets its mode (training or eval) back.
        example_input: a batch, shape (n, ...), or all that the network is called with, on the same device; the time is
            that of the whole batch.
        backend: where it runs: ``eager``, ``onnxruntime`` or another runtime, with settings:
            ``openvino,threads=2``.
        repeats: the most samples to take.
        seconds: no further sample is begun after these, once there are 6.
        warmup: runs before the first sample.
        timer: what measures; the device's own clock when not given.

    Returns:
        Median and interval.

    Raises:
        BudgetError: if no runtime is called so.
        ConvwrightError: if an argument is wrong, the network does not run, or the runtime is not installed.
    """
    models = {"network": (model, example_input)}
    found = compare_latency(models, backend=backend, repeats=repeats, seconds=seconds, warmup=warmup, timer=timer)
    return found.latencies["network"]


def compare_latency(
    models: Mapping[str, tuple[nn.Module | RunnableProgram, Tensor | Inputs]],
    *,
    backend: str | Target = "eager",
    repeats: int = 100,
    seconds: float = 6.0,
    warmup: int = 3,
    timer: Timer | None = None,
) -> Comparison:
    """Measure several networks in turns, so that the machine's noise hits all of them alike.

    Args:
        models: name -> (network, its input); the first is what the ratios refer to. A network that is measured often
            may be given as `ready` made it.
        backend: as in `measure_latency`.
        repeats: the most turns to take.
        seconds: no further turn is begun after these, once there are 6.
        warmup: runs of each network before the first turn.
        timer: as in `measure_latency`.

    Returns:
        Each one's latency, and its ratio to the first.

    Raises:
        ConvwrightError: as `measure_latency`; the message names the network.
    """
    target = Target.of(backend)
    _check(models, repeats, warmup)
    made = {name: ready(name, *of, target) for name, of in models.items()}
    devices = {name: _first(of[1]).device for name, of in models.items()}
    for name, each in made.items():
        _warm(name, each, warmup, devices[name])
    takes = {name: partial(each.time, 1, timer or wall_timer(devices[name])) for name, each in made.items()}
    turns = {n: [max(each, 1e-9) for each in own] for n, own in in_turns(takes, seconds, repeats).items()}
    first = turns[next(iter(models))]
    pairs = {name: [b / a for a, b in zip(first, own, strict=True)] for name, own in turns.items()}
    return Comparison(
        {name: _latency(turns[name], _first(of[1]), target) for name, of in models.items()},
        {name: spread(ratios) for name, ratios in pairs.items()},
    )


def _first(example_input: Tensor | Inputs) -> Tensor:
    return Inputs.of(example_input).tensors[0]


def _latency(samples: Sequence[float], example_input: Tensor, target: Target) -> Latency:
    return Latency(
        **asdict(spread(samples)),
        threads=target.threads or torch.get_num_threads(),
        device=str(example_input.device),
        dtype=str(example_input.dtype).removeprefix("torch."),
        backend=str(target),
    )


# ------------------------------------------------------------------ the thing that is timed


def _check(
    models: Mapping[str, tuple[nn.Module | RunnableProgram, Tensor | Inputs]], repeats: int, warmup: int
) -> None:
    if not models:
        raise ConvwrightError("there is no network to measure; give at least one.")
    if repeats < 1 or warmup < 0:
        raise ConvwrightError(f"repeats={repeats} must be from 1 on, and warmup={warmup} from 0 on.")
    for name, (model, example_input) in models.items():
        devices = set() if isinstance(model, RunnableProgram) else _devices(model)
        there = _first(example_input).device
        if any(device != there for device in devices):
            lies = ", ".join(sorted(map(str, devices)))
            raise ConvwrightError(
                f"{name} lies on {lies} and its input on {there}; move both to the device to measure."
            )


def _devices(model: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


def ready(
    name: str, model: nn.Module | RunnableProgram, example_input: Tensor | Inputs, target: Target
) -> RunnableProgram:
    """Make a network ready to run in eval mode; what is ready stays as it is."""
    if isinstance(model, RunnableProgram):
        return model
    with in_mode(model, training=False):
        return program(name, model, example_input, target)


def _warm(name: str, made: RunnableProgram, warmup: int, device: torch.device) -> None:
    try:
        if warmup and not made.remote:
            made.time(warmup, wall_timer(device))
    except Exception as error:  # the user's own forward may raise anything
        reason = first_line(error)
        raise ConvwrightError(f"{name} does not run on its input: {reason}") from error
