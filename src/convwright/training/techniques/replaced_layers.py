"""Other operators in the place of layers: depthwise separable convolutions, and a head that pools."""

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


def global_pool(
    network: Architecture | nn.Module | str, example_input: InputLike = None, *, init: Init = "least_squares"
) -> Architecture:
    """Return a network whose head pools the map that it flattened; what was given stays as it was.

    Args:
        network: An `Architecture`, or what `read` takes.
        example_input: As for `read`, where `network` has not been read.
        init: `least_squares`: from the old weights; `fresh`: drawn anew.

    Returns:
        The changed network as `.model`; unchanged where no layer reads a flattened map.

    Examples:
        >>> from torch import nn
        >>> from convwright.training.techniques.global_pool import global_pool
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> global_pool(net, (1, 1, 8, 8)).model[2]
        PooledLinear(in_features=4, out_features=10, bias=True)
    """
    return options_of(GlobalPool, init=init).applied(network, example_input)


@technique(
    "global_pool",
    Card(
        does="Puts global average pooling before a head that flattens the last map; the first linear layer then reads "
        "channels instead of channels times positions.",
        cost="None: the head gets smaller by the number of positions. The function changes; training makes up for it.",
        helps="Small networks whose parameters lie mostly in the head; networks that shall take any resolution.",
        hurts="Where the position of a feature matters (digits at a fixed place) and the last map is large. Hidden "
        "layers of the head stay as wide as they were.",
        source="Lin et al. 2014 (Network in Network); the operator global_pool.",
    ),
)
class GlobalPool(Structural):
    """Options of global average pooling.

    Attributes:
        init: How the new layer begins: `least_squares` from the old weights, or `fresh`.
    """

    nothing: ClassVar[str] = "no linear layer reads a flattened map; the head pools already"

    init: Init = "least_squares"

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield the linear layers that read a flattened map of more than one position."""
        for layer, _ in modules_called(arch, nn.Linear):
            if len(positions := arch.flow.flattened_map(layer)[2:]) and max(positions) > 1:
                yield Replace(layer.name, "global_pool", init=self.init)
