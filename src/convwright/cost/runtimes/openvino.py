"""OpenVINO (extra ``openvino``) on the CPU."""

from __future__ import annotations

import importlib
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from convwright.architecture.capture.graph import quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.onnx_files import PACKAGES, OnnxFileRuntime, array_of, owner_of, owners
from convwright.cost.runtimes.registry import RunnableProgram, Target
from convwright.errors import ConvwrightError, first_line


def compiled(content: Any, target: Target, profiled: bool = False) -> Any:
    """Return OpenVINO's compiled model of an ONNX file or of a model of OpenVINO's own."""
    core = importlib.import_module("openvino").Core()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": target.threads or torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # quantized layers are not concerned
        "ENABLE_CPU_PINNING": False,  # a core that others work on would be waited for
        "PERF_COUNT": profiled,
    }
    return core.compile_model(core.read_model(content) if isinstance(content, bytes) else content, "CPU", settings)


def quantized_model(content: bytes, calibration: Sequence[Inputs]) -> Any:
    """Return OpenVINO's model of an ONNX file in int8, made by NNCF as it does by default.

    Args:
        content: the file.
        calibration: batches of the file's size.

    Raises:
        Exception: as NNCF raises it; the batches do not fit.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it sends usage statistics to its maker, which nobody asked for
    with quiet_torch():
        nncf = importlib.import_module("nncf")
        model = importlib.import_module("openvino").Core().read_model(content)
        names = [port.any_name for port in model.inputs]
        feeds = [dict(zip(names, map(array_of, each.tensors), strict=True)) for each in calibration]
        return nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))


@dataclass(frozen=True, eq=False)
class OpenVinoProgram(RunnableProgram):
    """An inference request with its inputs.

    Attributes:
        request: of OpenVINO.
        source: the ONNX file, or a quantized model.
        content: the ONNX file that it was made of.
        feed: the inputs in order.
        target: how it runs.
    """

    request: Any
    source: Any
    content: bytes
    feed: list[Any]
    target: Target

    def run(self) -> object:
        """Run once."""
        return self.request.infer(self.feed)

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        found = self.request.infer(list(map(array_of, tensors)))
        return tuple(torch.from_numpy(value.copy()) for value in found.values())

    def profile(self, runs: int = 15) -> dict[str, float]:
        """Return the medians of OpenVINO's own counters; as `RunnableProgram.profile`."""
        request = compiled(self.source, self.target, profiled=True).create_infer_request()
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(runs):
            request.infer(self.feed)
            for each in request.get_profiling_info():
                times[each.node_name].append(each.real_time.total_seconds())
        known, found = owners(self.content), defaultdict[str, float](float)
        for name, taken in times.items():
            found[owner_of(name, known)] += statistics.median(taken)
        return dict(found)


class OpenVino(OnnxFileRuntime):
    """OpenVINO."""

    name: ClassVar[str] = "openvino"
    needs: ClassVar[tuple[str, ...]] = (*PACKAGES, "openvino")
    extra: ClassVar[str] = "openvino"
    int8: ClassVar[bool] = True
    quantizers: ClassVar[tuple[str, ...]] = ("nncf",)

    @property
    def version(self) -> str:
        """Of the package."""
        return version("openvino")

    def opened(
        self, name: str, content: bytes, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Compile an ONNX file; as `Runtime.convert`."""
        feed = list(map(array_of, inputs.tensors))
        try:
            source = quantized_model(content, calibration or (inputs,)) if target.int8 else content
            request = compiled(source, target).create_infer_request()
        except Exception as error:  # openvino's own errors
            raise ConvwrightError(f"OpenVINO does not run {name}: {first_line(error)}") from error
        return OpenVinoProgram(request, source, content, feed, target)
