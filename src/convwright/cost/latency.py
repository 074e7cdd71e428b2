"""Latency of whole networks: measured, with the noise stated, eager or in ONNX Runtime (extra ``onnx``).

A time on a shared machine is a sample with a long upper tail, so what is reported is the median with a 95%
interval from order statistics, which assumes no distribution.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import in_mode, quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.devices import to_host
from convwright.errors import ConvwrightError, did_you_mean, first_line

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


_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def onnx_call(name: str, model: nn.Module, example_input: Tensor | Inputs) -> Callable[[], object]:
    """Export a network and return what runs it once in ONNX Runtime, with torch's number of threads.

    Args:
        name: of the network, for messages.
        model: in eval mode, on the CPU.
        example_input: shape (n, ...), on the CPU.

    Raises:
        ConvwrightError: if ONNX Runtime is not installed, the input lies elsewhere, or the export fails.
    """
    if missing := missing_packages():
        raise ConvwrightError(
            f"the backend onnxruntime needs {', '.join(missing)}, not installed: pip install 'convwright[onnx]'."
        )
    inputs = Inputs.of(example_input)
    first = inputs.tensors[0]
    if first.device.type != "cpu":
        raise ConvwrightError(f"onnxruntime is measured on the CPU; {name} lies on {first.device}.")
    if first.dtype not in (torch.float32, torch.float64, torch.float16):
        raise ConvwrightError(f"onnxruntime is measured on float32, float64 or float16, not on {first.dtype}.")
    session = onnx_session(exported_onnx(name, model, inputs))
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: to_host(tensor).numpy() for name, tensor in zip(names, inputs.tensors, strict=True)}
    return lambda: session.run(None, feed)


def exported_onnx(name: str, model: nn.Module, example_input: Tensor | Inputs) -> bytes:
    """Return a network as the bytes of an ONNX file.

    Args:
        name: of the network, for messages.
        model: in eval mode, on the CPU.
        example_input: shape (n, ...), on the CPU; the file takes this shape.

    Raises:
        ConvwrightError: if the export fails.
    """
    try:
        # The exporter's notes are left out: it prints and warns, and errors say what matters.
        with quiet_torch(), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = Inputs.of(example_input)
            program = torch.onnx.export(model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False)
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever the exporter, the model or a limit of the format raises
        reason = first_line(error)
        raise ConvwrightError(f"{name} cannot be exported to ONNX: {reason}") from error


def missing_packages() -> list[str]:
    """Return what ONNX needs and is not installed."""
    return [package for package in _NEEDED if importlib.util.find_spec(package) is None]


def onnx_session(content: bytes | str) -> Any:
    """Return a session that runs an ONNX file, given as bytes or by its path, on the CPU with torch's threads."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
