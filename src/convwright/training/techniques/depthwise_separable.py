"""Depthwise separable convolutions in the place of dense ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from convwright.architecture import Architecture
from convwright.architecture.reading import InputLike
from convwright.edits import Replace
from convwright.edits.operators.convolutions import Init
from convwright.training.techniques.structural import Structural, modules_called, options_of
from convwright.training.techniques.technique import Card, technique


def depthwise_separable(
    network: Architecture | nn.Module | str,
    example_input: InputLike = None,
    *,
    first: bool = False,
    init: Init = "least_squares",
) -> Architecture:
    """Return a network with depthwise separable convolutions for dense ones; what was given stays as it was.

    Args:
        network: An `Architecture`, or what `read` takes.
        example_input: As for `read`, where `network` has not been read.
        first: Whether the first convolution is replaced, too.
        init: `least_squares`: from the old weights; `fresh`: drawn anew.

    Returns:
        The changed network as `.model`.

    Examples:
        >>> from convwright.training.techniques.depthwise_separable import depthwise_separable
        >>> len(depthwise_separable("zoo:resnet20").plan.edits)
        18
    """
    return options_of(DepthwiseSeparable, first=first, init=init).applied(network, example_input)


@technique(
    "depthwise_separable",
    Card(
        does="Replaces each dense convolution larger than 1x1 by a depthwise one of the same kernel and a 1x1 one.",
        cost="Fewer parameters and multiply-accumulates: of a 3x3 layer about 1/9 + 1/channels is left. The function "
        "changes; training makes up for it.",
        helps="Parameter budgets. The paper's 1.5K-parameter MNIST network is made of them.",
        hurts="Time: at equal parameters such networks were slower on CPUs than 3x3 ones, as depthwise layers move "
        "much memory for little arithmetic. The first layer reads too few channels to gain.",
        source="Sifre 2014; Howard et al. 2017; the operator dw_separable.",
    ),
)
class DepthwiseSeparable(Structural):
    """Options of depthwise separable convolutions.

    Attributes:
        first: Whether the first convolution is replaced, too.
        init: How the new layers begin: `least_squares` from the old weights, or `fresh`.
    """

    nothing: ClassVar[str] = "it has no dense convolution larger than 1x1 behind the first"

    first: bool = False
    init: Init = "least_squares"

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield the dense convolutions larger than 1x1."""
        for number, (layer, conv) in enumerate(modules_called(arch, nn.Conv2d)):
            if conv.groups > 1 or max(conv.kernel_size) == 1 or (number == 0 and not self.first):
                continue
            yield Replace(layer.name, "dw_separable", init=self.init)
