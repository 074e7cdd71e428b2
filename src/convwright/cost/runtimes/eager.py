"""Eager PyTorch: the network as it is, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import in_mode
from convwright.architecture.capture.pytrees import Inputs, tensors_of
from convwright.cost.runtimes.registry import Program, Runtime, Target, Timer, threads_of
from convwright.devices import to_host


@dataclass(frozen=True, eq=False)
class TorchProgram(Program):
    """What torch runs in eval mode, without gradients.

    Attributes:
        model: the network, whose modules get their modes back.
        call: the network, or what was made of it.
        inputs: what it is called with.
        target: with the number of threads.
    """

    model: nn.Module
    call: nn.Module
    inputs: Inputs
    target: Target

    def run(self) -> object:
        """Run once."""
        return self.inputs.call(self.call)

    def time(self, calls: int, timer: Timer) -> float:
        """Return the seconds of one run."""
        with in_mode(self.model, training=False), torch.inference_mode(), threads_of(self.target):
            return timer(self.run, calls)

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        with in_mode(self.model, training=False), torch.inference_mode():
            return tuple(to_host(tensor) for _, tensor in tensors_of(self.call(*tensors)))


class Eager(Runtime):
    """Eager PyTorch."""

    name: ClassVar[str] = "eager"

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> Program:
        """Return the network itself; as `Runtime.convert`."""
        return TorchProgram(model, model, inputs, target)
