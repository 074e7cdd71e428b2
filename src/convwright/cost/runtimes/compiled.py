"""``torch.compile`` with its usual back end, Inductor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import nn

from convwright.architecture.capture.graph import in_mode, quiet_torch
from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.eager import TorchProgram
from convwright.cost.runtimes.registry import RunnableProgram, Runtime, Target, threads_of
from convwright.errors import ConvwrightError, first_line


class Compiled(Runtime):
    """The network as ``torch.compile`` makes it."""

    name: ClassVar[str] = "compile"

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Compile a network by running it; as `Runtime.convert`."""
        made = TorchProgram(model, cast(nn.Module, torch.compile(model, dynamic=False)), inputs, target)
        try:
            with in_mode(model, training=False), torch.inference_mode(), threads_of(target), quiet_torch():
                made.run()
        except Exception as error:  # no compiler on the machine, or whatever Inductor or the network raises
            raise ConvwrightError(f"torch.compile cannot run {name}: {first_line(error)}") from error
        return made
