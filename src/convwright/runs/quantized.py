"""Networks in int8, as a runtime quantizes them, judged on the same images as the networks themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.pytrees import Inputs, mapped
from convwright.cost.runtimes import Target, program
from convwright.training import Metrics
from convwright.training.data.images import Images
from convwright.training.evaluate import eval_mode, evaluate
from convwright.training.statistics import calibration
from convwright.training.tasks.base import TaskPart

IMAGES = 128  # that int8 is calibrated on


class AsNetwork(nn.Module):
    """Calls what computes the same as a network, and returns its outputs in the nest that the network returns.

    Args:
        model: The network.
        example: What it is called with, shape (n, ...).
        run: From a batch to the tensors of the nest, in order.
    """

    def __init__(self, model: nn.Module, example: Tensor, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.run = run
        with eval_mode(model), torch.no_grad():
            self.nest = model(example)

    def forward(self, batch: Tensor) -> Any:
        """Return what is computed for a batch."""
        found = iter(self.run(batch))
        return mapped(self.nest, lambda _: next(found))


def judged_int8(target: Target, arch: Architecture, train: Images | TaskPart, held: Images | TaskPart) -> Metrics:
    """Quantize a network by its runtime's own library, and judge it.

    Args:
        target: A runtime, with int8.
        arch: The network; batches have the size of its example input.
        train: Training images, of which some give the ranges of the activations.
        held: What it is judged on.

    Raises:
        ConvwrightError: The runtime cannot run the network.
    """
    example = arch.example_input
    batches = [Inputs.of(each) for each in calibration(train, IMAGES, batch=len(example))]
    network = copy.deepcopy(arch.model).to(example.device)
    made = program(arch.source, network.eval(), example, target, batches)

    def run(batch: Tensor) -> Sequence[Tensor]:
        missing = len(example) - len(batch)  # of the last batch; the program takes one size
        full = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
        return [each[: len(batch)] for each in made.outputs(full)]

    return evaluate(AsNetwork(network, example, run), held, batch_size=len(example))
