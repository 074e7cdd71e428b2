"""Eager PyTorch: the network as it is, on any device."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import in_mode
from convwright.architecture.capture.pytrees import Inputs, tensors_of
from convwright.cost.runtimes.registry import RunnableProgram, Runtime, Target, Timer, threads_of
from convwright.devices import to_host


@dataclass(frozen=True, eq=False)
class TorchProgram(RunnableProgram):
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


@dataclass(frozen=True, eq=False)
class EagerProgram(TorchProgram):
    """The network itself."""

    def profile(self, runs: int = 15) -> dict[str, float]:
        """Return the times from one layer's start to the next one's start, on a CPU; as `RunnableProgram.profile`."""
        if self.inputs.tensors[0].device.type != "cpu":
            return {}
        starts: list[tuple[str, float]] = []

        def begun(weight: str, *_: object) -> None:
            starts.append((weight, time.perf_counter()))

        owners = [(f"{name}.weight".lstrip("."), module) for name, module in self.model.named_modules()]
        layers = [(name, module) for name, module in owners if getattr(module, "weight", None) is not None]
        hooks = [m.register_forward_pre_hook(partial(begun, n)) for n, m in layers if m.weight.ndim > 1]
        try:
            passes = [self._pass(starts) for _ in range(runs + 1)][1:]
        finally:
            for hook in hooks:
                hook.remove()
        return {name: statistics.median(one.get(name, 0.0) for one in passes) for name in passes[0]}

    def _pass(self, starts: list[tuple[str, float]]) -> dict[str, float]:
        with in_mode(self.model, training=False), torch.inference_mode(), threads_of(self.target):
            starts[:] = [("", time.perf_counter())]
            self.run()
            starts.append(("", time.perf_counter()))
        found = defaultdict[str, float](float)
        for (name, start), (_, end) in itertools.pairwise(starts):
            found[name] += end - start
        return dict(found)


class Eager(Runtime):
    """Eager PyTorch."""

    name: ClassVar[str] = "eager"
    deploys: ClassVar[bool] = False

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Return the network itself; as `Runtime.convert`."""
        return EagerProgram(model, model, inputs, target)
