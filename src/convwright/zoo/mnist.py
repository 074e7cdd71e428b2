"""The MNIST networks of "Training Efficient CNNs" (Ethiraj and Bolla, 2022), phase by phase.

Their paper shrinks one network step by step: a plain one (base), 1x1 convolutions that narrow the
network before each pool (M1), one depthwise separable block (M1d), the last convolution dropped
(M2, M2d), and depthwise separable convolutions everywhere (M3). The layer lists are those of the
authors' published code. Its classifier, a 1x1 convolution on the pooled 1x1 map, is a linear layer
here: the same function with the same parameters. The networks return logits.

Two networks keep to 1,500 parameters, which M3 in fact exceeds: A is M3 with fewer last channels, B
is a reconstruction of ours, not from the paper.

All take 28x28 images and any larger size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from convwright.zoo.parts import check_stages, classify, max_pool
from convwright.zoo.registry import register

_SHAPE = (1, 28, 28)
_PAPER = "Ethiraj and Bolla 2022"


def conv(in_channels: int, out_channels: int, padding: int = 0) -> nn.Sequential:
    """Return 3x3 convolution, ReLU, batch norm: sides shrink by 2, or stay with ``padding=1``."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
    )


def separable(in_channels: int, out_channels: int, padding: int = 0) -> nn.Sequential:
    """Return depthwise 3x3 directly followed by pointwise, ReLU, batch norm; sides as conv."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
    )


def narrow(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return the bare 1x1 convolution that narrows the network before a pool."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def _network(*features: nn.Module, channels: int, num_classes: int, bias: bool = False) -> nn.Sequential:
    """Return the features followed by global average pool and classifier, named for reading."""
    layers = OrderedDict[str, nn.Module](features=nn.Sequential(*features))
    return nn.Sequential(layers | classify(channels, num_classes, bias))


@register("mnist-base", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 0")
def mnist_base(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
    """Build the starting point: 3x3 convolutions only, 25,144 parameters."""
    return _network(
        conv(in_channels, 8),
        conv(8, 16),
        nn.Dropout(0.05),
        max_pool(16, blur),
        conv(16, 32),
        conv(32, 64),
        nn.Dropout(0.17),
        max_pool(64, blur),
        channels=64,
        num_classes=num_classes,
    )


@register("mnist-m1", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 1")
def mnist_m1(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
    """Build phase 1, narrowed before each pool: 7,767 parameters."""
    return _network(
        conv(in_channels, 8),
        conv(8, 12),
        nn.Dropout(0.05),
        narrow(12, 8),
        max_pool(8, blur),
        conv(8, 12),
        conv(12, 16),
        nn.Dropout(0.17),
        narrow(16, 12),
        max_pool(12, blur),
        conv(12, 15, padding=1),
        nn.Dropout(0.17),
        conv(15, 15, padding=1),
        channels=15,
        num_classes=num_classes,
    )


@register(
    "mnist-m1d",
    input_shape=_SHAPE,
    num_classes=10,
    source=f"{_PAPER}, phase 1, one depthwise block",
)
def mnist_m1d(num_classes: int = 10, in_channels: int = 1, blur: bool = False, third: int = 13) -> nn.Sequential:
    """Build phase 1 with one depthwise separable block: 7,611 parameters.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias both pools.
        third: channels of the third convolution; the run with 7,847 parameters fits 14.
    """
    return _network(
        conv(in_channels, 10),
        separable(10, 12),
        nn.Dropout(0.05),
        narrow(12, 10),
        max_pool(10, blur),
        conv(10, third),
        conv(third, 16),
        nn.Dropout(0.17),
        narrow(16, 12),
        max_pool(12, blur),
        conv(12, 15, padding=1),
        nn.Dropout(0.17),
        conv(15, 15, padding=1),
        channels=15,
        num_classes=num_classes,
    )


@register("mnist-m2", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 2")
def mnist_m2(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
    """Build phase 2, phase 1 without its last convolution: 5,712 parameters."""
    return _network(
        conv(in_channels, 8),
        conv(8, 12),
        nn.Dropout(0.05),
        narrow(12, 8),
        max_pool(8, blur),
        conv(8, 12),
        conv(12, 16),
        nn.Dropout(0.17),
        narrow(16, 12),
        max_pool(12, blur),
        conv(12, 15, padding=1),
        nn.Dropout(0.17),
        channels=15,
        num_classes=num_classes,
    )


@register(
    "mnist-m2d",
    input_shape=_SHAPE,
    num_classes=10,
    source=f"{_PAPER}, phase 2, one depthwise block",
)
def mnist_m2d(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
    """Build phase 2 with one depthwise separable block: 5,616 parameters."""
    return _network(
        conv(in_channels, 8),
        separable(8, 12),
        nn.Dropout(0.05),
        narrow(12, 8),
        max_pool(8, blur),
        conv(8, 13),
        conv(13, 18),
        nn.Dropout(0.17),
        narrow(18, 12),
        max_pool(12, blur),
        conv(12, 16, padding=1),
        nn.Dropout(0.17),
        channels=16,
        num_classes=num_classes,
    )


@register(
    "mnist-deep",
    input_shape=_SHAPE,
    num_classes=10,
    source=f"{_PAPER}, all depthwise, untrained there",
)
def mnist_deep(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
    """Build phase 1 with every later convolution depthwise separable: 2,117 parameters."""
    return _network(
        conv(in_channels, 10),
        separable(10, 12),
        nn.Dropout(0.05),
        narrow(12, 10),
        max_pool(10, blur),
        separable(10, 13),
        separable(13, 16),
        nn.Dropout(0.17),
        narrow(16, 12),
        max_pool(12, blur),
        separable(12, 15, padding=1),
        nn.Dropout(0.17),
        separable(15, 15, padding=1),
        channels=15,
        num_classes=num_classes,
    )


def _m3(num_classes: int, in_channels: int, blur: bool, head_bias: bool, last: int) -> nn.Sequential:
    return _network(
        conv(in_channels, 8),
        separable(8, 12),
        nn.Dropout(0.05),
        narrow(12, 8),
        max_pool(8, blur),
        separable(8, 12),
        separable(12, 16),
        nn.Dropout(0.17),
        narrow(16, 12),
        max_pool(12, blur),
        separable(12, last, padding=1),
        nn.Dropout(0.17),
        channels=last,
        num_classes=num_classes,
        bias=head_bias,
    )


@register("mnist-m3", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 3")
def mnist_m3(num_classes: int = 10, in_channels: int = 1, blur: bool = False, head_bias: bool = False) -> nn.Sequential:
    """Build phase 3, of the "1500 parameters" headline: 1,560, or 1,570 with a head bias."""
    return _m3(num_classes, in_channels, blur, head_bias, last=15)


@register(
    "mnist-a",
    input_shape=_SHAPE,
    num_classes=10,
    source=f"{_PAPER}, phase 3 cut to 1,500 parameters",
)
def mnist_a(num_classes: int = 10, in_channels: int = 1, blur: bool = True, head_bias: bool = False) -> nn.Sequential:
    """Build phase 3 with 12 last channels: 1,488 parameters, or 1,498 with a head bias."""
    return _m3(num_classes, in_channels, blur, head_bias, last=12)


def _unit(in_channels: int, out_channels: int, padding: int = 0) -> nn.Sequential:
    """Return depthwise 3x3, pointwise, batch norm, ReLU: the order that network B uses."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class SharedUnit(nn.Module):
    """A depthwise separable convolution applied several times, each with a batch norm of its own, and ReLU.

    Shapes: (N, C, H, W) -> (N, C, H, W), or two less along both sides each time with ``padding=0``.

    Args:
        channels: C.
        times: how often.
        padding: of the depthwise convolution.
    """

    def __init__(self, channels: int, times: int, padding: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=padding, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last application's output."""
        for norm in self.norms:
            x = torch.relu(norm(self.pointwise(self.depthwise(x))))
        return x


@register("mnist-b", input_shape=_SHAPE, num_classes=10, source="reconstructed for a 1,500 limit")
def mnist_b(
    num_classes: int = 10,
    in_channels: int = 1,
    blur: bool = True,
    widths: Sequence[int] = (8, 14, 16),
    times: int = 1,
    padding: int = 0,
) -> nn.Sequential:
    """Build our own network for the same budget: 1,460 parameters.

    It spends what M3 gives to narrowing convolutions on wider separable ones, puts batch norm
    before the ReLU, and has no dropout: networks this small underfit.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias the two pools.
        widths: channels of the first convolution, of the unit before the first pool, and of all later ones;
            (6, 10, 12) makes 972 parameters.
        times: how often the unit before the second pool is applied, with the same weights but batch norms of its
            own: depth for 2 * C parameters (1,492 with two).
        padding: of the units between the pools; 1 keeps 12x12 positions instead of shrinking to 8x8.
    """
    check_stages("mnist-b", 3, widths=widths)
    first, second, last = widths
    return _network(
        nn.Sequential(nn.Conv2d(in_channels, first, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
        _unit(first, second),
        max_pool(second, blur),
        _unit(second, last, padding),
        _unit(last, last, padding) if times == 1 else SharedUnit(last, times, padding),
        max_pool(last, blur),
        nn.Sequential(nn.Conv2d(last, last, 3, padding=1, groups=last, bias=False), nn.BatchNorm2d(last), nn.ReLU()),
        channels=last,
        num_classes=num_classes,
        bias=True,
    )
