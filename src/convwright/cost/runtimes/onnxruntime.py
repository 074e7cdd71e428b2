"""ONNX Runtime (extra ``onnx``), on the CPU, CUDA or TensorRT."""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.onnx_files import PACKAGES, OnnxFileRuntime, owner_of, owners
from convwright.cost.runtimes.registry import Program, Target
from convwright.devices import to_host
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


@dataclass(frozen=True, eq=False)
class OnnxProgram(Program):
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
        feed = dict(zip(self.feed, (to_host(tensor).numpy() for tensor in tensors), strict=True))
        return tuple(torch.from_numpy(found) for found in self.session.run(None, feed))

    def profile(self, runs: int = 15) -> dict[str, float]:
        """Return the medians of ONNX Runtime's own profiler; as `Program.profile`."""
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
    providers: ClassVar[tuple[str, ...]] = tuple(filter(None, _PROVIDERS))

    def check(self, target: Target) -> None:
        """As `Runtime.check`; the provider must be there, too."""
        super().check(target)
        there = importlib.import_module("onnxruntime").get_available_providers()
        if target.provider and f"{_PROVIDERS[target.provider]}ExecutionProvider" not in there:
            raise ConvwrightError(
                f"this ONNX Runtime has no provider {target.provider} (it has {', '.join(there)}): "
                "pip install onnxruntime-gpu on a machine with such a device."
            )

    @property
    def version(self) -> str:
        """Of the package."""
        return version("onnxruntime")

    def opened(self, name: str, content: bytes, inputs: Inputs, target: Target) -> Program:
        """Open an ONNX file; as `Runtime.convert`."""
        try:
            session = onnx_session(content, target)
        except Exception as error:  # onnxruntime's own errors
            raise ConvwrightError(f"ONNX Runtime does not run {name}: {first_line(error)}") from error
        names = [entry.name for entry in session.get_inputs()]
        feed = {key: to_host(tensor).numpy() for key, tensor in zip(names, inputs.tensors, strict=True)}
        return OnnxProgram(session, content, feed, target)
