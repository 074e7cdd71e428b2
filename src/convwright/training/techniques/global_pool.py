"""Global average pooling: the head reads the mean of each channel instead of a flattened map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from convwright.architecture import Architecture
from convwright.architecture.flattened import flattened_map
from convwright.architecture.reading import InputLike
from convwright.edits import Replace
from convwright.edits.operators.convolutions import Init
from convwright.training.techniques.structural import Structural, modules_called, options_of
from convwright.training.techniques.technique import Card, technique


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
            if len(positions := flattened_map(arch.flow, layer)[2:]) and max(positions) > 1:
                yield Replace(layer.name, "global_pool", init=self.init)
