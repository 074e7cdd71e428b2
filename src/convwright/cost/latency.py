"""Latency of whole networks: measured, with the noise stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import in_mode
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.latency_onnx import onnx_call
from convwright.cost.timing import Spread, Timer, in_turns, spread, wall_timer
from convwright.errors import ConvwrightError, did_you_mean, first_line

BACKENDS = ("eager", "onnxruntime")
Call = Callable[[], object]


@dataclass(frozen=True)
class Latency(Spread):
    """How long one forward pass takes.

    Attributes:
        median: seconds.
        lower: lower end of the 95% interval of the median, by order statistics.
        upper: its upper end.
        repeats: number of samples.
        threads: threads that torch may use.
        device: ``cpu``, ``cuda:0``, ...
        dtype: of the input.
        backend: ``eager`` or ``onnxruntime``.
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
    backend: str = "eager",
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
        backend: ``eager``, or ``onnxruntime`` (extra ``onnx``; on the CPU).
        repeats: the most samples to take.
        seconds: no further sample is begun after these, once there are 6.
        warmup: runs before the first sample.
        timer: what measures; the device's own clock when not given.

    Returns:
        Median and interval.

    Raises:
        ConvwrightError: if an argument is wrong, the network does not run, or the backend is not installed.
    """
    models = {"network": (model, example_input)}
    found = compare_latency(models, backend=backend, repeats=repeats, seconds=seconds, warmup=warmup, timer=timer)
    return found.latencies["network"]


def compare_latency(
    models: Mapping[str, tuple[nn.Module, Tensor | Inputs]],
    *,
    backend: str = "eager",
    repeats: int = 100,
    seconds: float = 6.0,
    warmup: int = 3,
    timer: Timer | None = None,
) -> Comparison:
    """Measure several networks in turns (A B A B ...), so that the machine's noise hits all of them alike.

    Args:
        models: name -> (network, its input); the first is what the ratios refer to.
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
    _check(models, backend, repeats, warmup)
    with ExitStack() as stack:
        calls = {name: stack.enter_context(_prepared(name, *of, backend)) for name, of in models.items()}
        timers = {name: timer or wall_timer(_first(of[1]).device) for name, of in models.items()}
        for name, call in calls.items():
            _warm(name, call, warmup)
        takes = {name: partial(timers[name], call, 1) for name, call in calls.items()}
        turns = {n: [max(each, 1e-9) for each in own] for n, own in in_turns(takes, seconds, repeats).items()}
    first = turns[next(iter(models))]
    pairs = {name: [b / a for a, b in zip(first, own, strict=True)] for name, own in turns.items()}
    return Comparison(
        {name: _latency(turns[name], _first(of[1]), backend) for name, of in models.items()},
        {name: spread(ratios) for name, ratios in pairs.items()},
    )


def _first(example_input: Tensor | Inputs) -> Tensor:
    return Inputs.of(example_input).tensors[0]


def _latency(samples: Sequence[float], example_input: Tensor, backend: str) -> Latency:
    return Latency(
        **asdict(spread(samples)),
        threads=torch.get_num_threads(),
        device=str(example_input.device),
        dtype=str(example_input.dtype).removeprefix("torch."),
        backend=backend,
    )


# ------------------------------------------------------------------ the thing that is timed


def _check(models: Mapping[str, tuple[nn.Module, Tensor | Inputs]], backend: str, repeats: int, warmup: int) -> None:
    if not models:
        raise ConvwrightError("there is no network to measure; give at least one.")
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        raise ConvwrightError(f"{backend!r} is no backend; there are {' and '.join(BACKENDS)}.{hint}")
    if repeats < 1 or warmup < 0:
        raise ConvwrightError(f"repeats={repeats} must be from 1 on, and warmup={warmup} from 0 on.")
    for name, (model, example_input) in models.items():
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        there = _first(example_input).device
        if any(device != there for device in devices):
            lies = ", ".join(sorted(map(str, devices)))
            raise ConvwrightError(
                f"{name} lies on {lies} and its input on {there}; move both to the device to measure."
            )


@contextmanager
def _prepared(name: str, model: nn.Module, example_input: Tensor | Inputs, backend: str) -> Iterator[Call]:
    """Give what runs the network once, in eval mode, without gradients."""
    with in_mode(model, training=False), torch.inference_mode():
        inputs = Inputs.of(example_input)
        if backend == "onnxruntime":
            yield onnx_call(name, model, inputs)
        else:
            yield lambda: inputs.call(model)


def _warm(name: str, call: Call, warmup: int) -> None:
    try:
        for _ in range(warmup):
            call()
    except Exception as error:  # the user's own forward may raise anything
        reason = first_line(error)
        raise ConvwrightError(f"{name} does not run on its input: {reason}") from error
