"""ONNX Runtime (extra ``onnx``), on the CPU, CUDA or TensorRT."""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from convwright.architecture.capture.graph import quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.onnx_files import PACKAGES, OnnxFileRuntime, array_of, owner_of, owners
from convwright.cost.runtimes.registry import RunnableProgram, Target
from convwright.errors import ConvwrightError, first_line

_PROVIDERS = {"": "CPU", "cuda": "CUDA", "tensorrt": "Tensorrt"}


def onnx_session(content: bytes | str, target: Target | None = None, profiled: Path | None = None) -> Any:
    """Return a session that runs an ONNX file.

    Args:
        content: the file, or its path.
        target: with threads and provider; None: the CPU with torch's threads.
        profiled: what the names of files with the times of operators begin with; None: nothing is timed.
    """
    runtime, asked = importlib.import_module("onnxruntime"), target or Target("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = asked.threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profiled is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profiled)
    return runtime.InferenceSession(content, options, providers=[f"{_PROVIDERS[asked.provider]}ExecutionProvider"])


def quantized_onnx(content: bytes, calibration: Sequence[Inputs]) -> bytes:
    """Return an ONNX file in int8 (QDQ), made by ONNX Runtime's own static quantization.

    Activations become unsigned bytes, weights signed ones, per output channel. That is what ONNX Runtime advises for
    x86 with VNNI; its default, signed activations, takes twice as long there or longer.

    Args:
        content: a file in float32, of fixed or free batch size.
        calibration: batches that the ranges of the activations are taken from, from the smallest to the largest value.

    Raises:
        Exception: as ONNX Runtime raises it; the file or the batches do not fit.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_torch():
        quantization = importlib.import_module("onnxruntime.quantization")
        preparation = importlib.import_module("onnxruntime.quantization.shape_inference")
        given, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "done"))
        given.write_bytes(content)
        preparation.quant_pre_process(given, prepared, skip_symbolic_shape=True)
        names = [entry.name for entry in importlib.import_module("onnx").load(given).graph.input]
        feeds = (dict(zip(names, map(array_of, each.tensors), strict=True)) for each in calibration)
        bytes_of = quantization.QuantType
        quantization.quantize_static(
            prepared,
            done,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            per_channel=True,
            activation_type=bytes_of.QUInt8,
            weight_type=bytes_of.QInt8,
        )
        return done.read_bytes()


@dataclass(frozen=True, eq=False)
class OnnxProgram(RunnableProgram):
    """A session with its inputs.

    Attributes:
        session: of ONNX Runtime.
        content: the file that runs.
        feed: the inputs by name.
        target: how it runs.
    """

    session: Any
    content: bytes
    feed: dict[str, Any]
    target: Target

    def run(self) -> object:
        """Run once."""
        return self.session.run(None, self.feed)

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        feed = dict(zip(self.feed, map(array_of, tensors), strict=True))
        return tuple(torch.from_numpy(found) for found in self.session.run(None, feed))

    def profile(self, runs: int = 15) -> dict[str, float]:
        """Return the medians of ONNX Runtime's own profiler; as `RunnableProgram.profile`."""
        with tempfile.TemporaryDirectory() as folder:
            session = onnx_session(self.content, self.target, Path(folder) / "profile")
            for _ in range(runs):
                session.run(None, self.feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e6)
        known, found = owners(self.content), defaultdict[str, float](float)
        for name, taken in times.items():
            found[owner_of(name, known)] += statistics.median(taken)
        return dict(found)


class OnnxRuntime(OnnxFileRuntime):
    """ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"
    needs: ClassVar[tuple[str, ...]] = (*PACKAGES, "onnxruntime")
    int8: ClassVar[bool] = True
    providers: ClassVar[tuple[str, ...]] = tuple(filter(None, _PROVIDERS))

    def check(self, target: Target) -> None:
        """As `Runtime.check`; the provider must be there, too."""
        super().check(target)
        if target.int8 and target.provider:
            raise ConvwrightError(f"onnxruntime,int8 is made for the CPU; leave out {target.provider}.")
        if not target.provider:
            return
        there = importlib.import_module("onnxruntime").get_available_providers()
        if f"{_PROVIDERS[target.provider]}ExecutionProvider" not in there:
            raise ConvwrightError(
                f"this ONNX Runtime has no provider {target.provider} (it has {', '.join(there)}): "
                "pip install onnxruntime-gpu on a machine with such a device."
            )

    @property
    def version(self) -> str:
        """Of the package."""
        return version("onnxruntime")

    def opened(
        self, name: str, content: bytes, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Open an ONNX file; as `Runtime.convert`."""
        try:
            content = quantized_onnx(content, calibration or (inputs,)) if target.int8 else content
            session = onnx_session(content, target)
        except Exception as error:  # onnxruntime's own errors
            raise ConvwrightError(f"ONNX Runtime does not run {name}: {first_line(error)}") from error
        names = [entry.name for entry in session.get_inputs()]
        feed = dict(zip(names, map(array_of, inputs.tensors), strict=True))
        return OnnxProgram(session, content, feed, target)
