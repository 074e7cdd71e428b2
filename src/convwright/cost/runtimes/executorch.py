"""ExecuTorch with XNNPACK (package ``executorch``): what runs networks of PyTorch on phones, here on the CPU."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.registry import RunnableProgram, Runtime, Target, Timer
from convwright.devices import to_host
from convwright.errors import ConvwrightError, first_line


@dataclass(frozen=True, eq=False)
class ExecuTorchProgram(RunnableProgram):
    """A loaded method with its inputs.

    Attributes:
        method: of ExecuTorch.
        program: it belongs to; it must live as long.
        feed: the inputs in order.
        target: with the number of threads.
    """

    method: Any
    program: Any
    feed: list[Tensor]
    target: Target

    def run(self) -> object:
        """Run once."""
        return self.method.execute(self.feed)

    def time(self, calls: int, timer: Timer) -> float:
        """Return the seconds of one run; the pool of threads is one for the whole process."""
        bindings = importlib.import_module("executorch.extension.pybindings.portable_lib")
        threads = self.target.threads or torch.get_num_threads()
        if bindings._threadpool_get_thread_count() != threads:
            bindings._unsafe_reset_threadpool(threads)
        return super().time(calls, timer)

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        return tuple(each.clone() for each in self.method.execute([to_host(tensor) for tensor in tensors]))


class ExecuTorch(Runtime):
    """ExecuTorch."""

    name: ClassVar[str] = "executorch"
    needs: ClassVar[tuple[str, ...]] = ("executorch",)

    @property
    def version(self) -> str:
        """Of the package."""
        return version("executorch")

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Export a network, give XNNPACK what it can run, and load it; as `Runtime.convert`."""
        try:
            with quiet_torch(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                content = _lowered(torch.export.export(model, inputs.args, kwargs=dict(inputs.kwargs)))
                runtime = importlib.import_module("executorch.runtime").Runtime.get()
                program = runtime.load_program(content)
                made = ExecuTorchProgram(program.load_method("forward"), program, list(inputs.tensors), target)
                made.run()
        except Exception as error:  # whatever the exporter or ExecuTorch raises
            raise ConvwrightError(f"ExecuTorch does not run {name}: {first_line(error)}") from error
        return made


def _lowered(exported: Any) -> bytes:
    exir = importlib.import_module("executorch.exir")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)
