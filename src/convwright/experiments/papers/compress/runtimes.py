"""How long a row's network takes in the runtimes that networks are deployed with, beside the untouched one."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from convwright.architecture import create
from convwright.cost import latency
from convwright.cost.latency import calls_per_sample, spread, wall_timer
from convwright.cost.runtimes.onnx_files import exported_onnx
from convwright.cost.runtimes.onnxruntime import onnx_session
from convwright.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convwright.training import ImageData, Recipe

Call = Callable[[], object]
_NEEDS = "the latencies of this experiment need pip install onnx onnxscript onnxruntime openvino"


@dataclass(frozen=True)
class RuntimeStudy:
    """The latency of a row's network in ONNX Runtime and OpenVINO, measured in turns with that of the untouched one.

    One image, one thread, float32; each network works on images of its own resolution.

    Attributes:
        model: The untouched network, as for `create`.
        options: Of its builder.
        shape: (c, h, w) of its images.
        seconds: How long is measured.
    """

    kind: ClassVar[str] = "runtimes"

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shape: tuple[int, int, int] = (3, 32, 32)
    seconds: float = 8.0

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return per runtime ``own`` and ``untouched`` in seconds and ``ratio``, each with its 95 % interval.

        Raises:
            RecipeError: A runtime is not installed.
        """
        untouched, _, _ = create(self.model, **self.options)
        return beside(untouched, self.shape, copy.deepcopy(model), data.shape, self.seconds)


def beside(
    untouched: nn.Module,
    shape: tuple[int, ...],
    own: nn.Module,
    own_shape: tuple[int, ...],
    seconds: float,
    runtimes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `RuntimeStudy` returns, of two networks on the CPU, which are put into eval mode."""
    chosen, threads = runtimes or tuple(RUNTIMES), torch.get_num_threads()
    calls: dict[tuple[str, str], Call] = {}
    torch.set_num_threads(1)
    try:
        for who, network, size in (("untouched", untouched, shape), ("own", own, own_shape)):
            image = torch.rand(1, *size)
            content = exported_onnx(who, network.float().cpu().eval(), image)
            calls |= {(runtime, who): _called(runtime, content, image) for runtime in chosen}
        samples = in_turns(calls, seconds)
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    for runtime in chosen:
        times = {who: samples[runtime, who] for who in ("untouched", "own")}
        ratios = [a / b for a, b in zip(times["own"], times["untouched"], strict=True)]
        found[runtime] = {name: asdict(spread(values)) for name, values in {**times, "ratio": ratios}.items()}
    return found


def in_turns(calls: Mapping[Any, Call], seconds: float) -> dict[Any, list[float]]:
    """Time calls in turns (A B A B ...); return the seconds of one call each, turn by turn."""
    timer, counts = wall_timer(torch.device("cpu")), {}
    for name, call in calls.items():
        counts[name] = calls_per_sample(min(timer(call, 1) for _ in range(5)))
    return latency.in_turns({name: partial(timer, call, counts[name]) for name, call in calls.items()}, seconds, 1000)


def _onnxruntime(content: bytes, image: Tensor) -> Call:
    session = onnx_session(content)
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)


def _openvino(content: bytes, image: Tensor) -> Call:
    core = importlib.import_module("openvino").Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # a core that others work on would be waited for
    }
    request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
    return lambda: request.infer([image.numpy()])


RUNTIMES = {"ONNX Runtime": _onnxruntime, "OpenVINO": _openvino}


def _called(runtime: str, content: bytes, image: Tensor) -> Call:
    try:
        return RUNTIMES[runtime](content, image)
    except ImportError as error:
        raise RecipeError(f"{_NEEDS} ({error})") from None
