"""The CIFAR-10 networks of "Training Efficient CNNs" (Ethiraj and Bolla, 2022).

``cifar-3x3`` and ``cifar-dw`` follow the authors' published code layer by layer. In that code the second and third
stage compute a residual sum and then hand on the branch without it; ``keep_sum`` chooses between that (False, their
default here) and the sum that was presumably meant (True). ``cifar-a`` is the depthwise network with the sum.
``cifar-b`` is a reconstruction and ``cifar-c`` a network of ours for the same budget, not from the paper.

All take any image of at least 8x8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from convwright.zoo import parts
from convwright.zoo.parts import check_stages, classify, conv_bn, max_pool
from convwright.zoo.registry import register

_SHAPE = (3, 32, 32)
_PAPER = "Ethiraj and Bolla 2022"


def conv(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Return 3x3 convolution with bias, ReLU, batch norm: (N, in, H, W) -> (N, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
    )


def separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return depthwise 3x3 and pointwise with biases, ReLU, batch norm: as :func:`conv`."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
    )


class SumStage(nn.Module):
    """Two units, the second one residual, then dropout and a pool that halves the image.

    Shapes: (N, C_in, H, W) -> (N, C, H // 2, W // 2), C being the output width of ``first``.

    Args:
        first: unit that sets the width.
        second: unit that keeps width and size.
        dropout: probability, applied to the sum.
        pool: module that halves the image.
        keep_sum: add the first unit's output to the second's; if False hand on the second's alone
            and, as in the authors' code, without dropout.
    """

    def __init__(
        self, first: nn.Module, second: nn.Module, dropout: float, pool: nn.Module, keep_sum: bool = True
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.dropout = nn.Dropout(dropout)
        self.pool = pool
        self.keep_sum = keep_sum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return pool(dropout(first(x) + second(first(x))))."""
        start = self.first(x)
        out: torch.Tensor = self.second(start)
        if self.keep_sum:
            out = self.dropout(start + out)
        pooled: torch.Tensor = self.pool(out)
        return pooled


def _stages(in_channels: int, depthwise: bool, blur: bool, keep_sum: bool) -> list[nn.Module]:
    """Return the three halving stages, which the two published networks share but for one unit."""
    unit = separable if depthwise else conv
    return [
        SumStage(conv(in_channels, 16), conv(16, 16), 0.06, max_pool(16, blur)),
        SumStage(unit(16, 32), conv(32, 32), 0.07, max_pool(32, blur), keep_sum),
        SumStage(unit(32, 64), conv(64, 64, dilation=2), 0.07, max_pool(64, blur), keep_sum),
    ]


def _network(stages: Sequence[nn.Module], channels: int, num_classes: int, bias: bool) -> nn.Sequential:
    """Return the stages, named from 1, with global average pool and classifier."""
    layers = OrderedDict((f"stage{number}", stage) for number, stage in enumerate(stages, start=1))
    return nn.Sequential(layers | classify(channels, num_classes, bias))


@register("cifar-3x3", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, without depthwise")
def cifar_3x3(num_classes: int = 10, in_channels: int = 3, blur: bool = False, keep_sum: bool = False) -> nn.Sequential:
    """Build the network of full 3x3 convolutions: 143,208 parameters."""
    stages = _stages(in_channels, depthwise=False, blur=blur, keep_sum=keep_sum)
    return _network([*stages, conv(64, 120)], 120, num_classes, bias=False)


@register("cifar-dw", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, depthwise")
def cifar_dw(num_classes: int = 10, in_channels: int = 3, blur: bool = False, keep_sum: bool = False) -> nn.Sequential:
    """Build the depthwise separable network of the "140K" headline: 143,396 parameters."""
    last = nn.Sequential(separable(64, 128), separable(128, 192), nn.Dropout(0.05), separable(192, 260))
    stages = _stages(in_channels, depthwise=True, blur=blur, keep_sum=keep_sum)
    return _network([*stages, last], 260, num_classes, bias=False)


@register("cifar-a", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, depthwise, sums kept")
def cifar_a(num_classes: int = 10, in_channels: int = 3, blur: bool = True, keep_sum: bool = True) -> nn.Sequential:
    """Build ``cifar-dw`` with its residual sums used and its pools anti-aliased."""
    return cifar_dw(num_classes, in_channels, blur, keep_sum)


_half = partial(parts.separable, activation=None)  # its last ReLU is outside


class SeparableResidual(nn.Module):
    """Two depthwise separable units with an identity shortcut: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _half(channels, channels)
        self.second = _half(channels, channels)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x + second(relu(first(x))))."""
        out: torch.Tensor = self.relu(x + self.second(self.relu(self.first(x))))
        return out


@register("cifar-b", input_shape=_SHAPE, num_classes=10, source="reconstructed for a 140K limit")
def cifar_b(
    num_classes: int = 10,
    in_channels: int = 3,
    blur: bool = True,
    widths: Sequence[int] = (36, 72, 144),
    depths: Sequence[int] = (2, 2, 2),
    squeeze: int | None = None,
) -> nn.Sequential:
    """Build our own residual network for the same budget: 139,042 parameters.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias the two pools.
        widths: channels of each stage.
        depths: residual blocks in each stage.
        squeeze: end each stage with squeeze-and-excitation that narrows by this factor; None for none.
    """
    check_stages("cifar-b", 3, widths=widths, depths=depths)
    stages: list[nn.Module] = []
    channels = in_channels
    for width, depth in zip(widths, depths, strict=True):
        stage = nn.Sequential()
        if not stages:
            stage.append(conv_bn(channels, width, 3))
        else:
            # Widen at the old resolution, then pool: the pool would lose what the new channels can keep.
            stage.extend([_half(channels, width), nn.ReLU(), max_pool(width, blur)])
        stage.extend(SeparableResidual(width) for _ in range(depth))
        if squeeze is not None:
            stage.append(SqueezeExcitation(width, max(1, width // squeeze)))
        stages.append(stage)
        channels = width
    return _network(stages, channels, num_classes, bias=True)


class DenseResidual(nn.Module):
    """One 3x3 convolution with an identity shortcut: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = conv_bn(channels, channels, 3, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x + branch(x))."""
        out: torch.Tensor = self.relu(x + self.branch(x))
        return out


@register("cifar-c", input_shape=_SHAPE, num_classes=10, source="ours, for a 140K limit and a processor without a GPU")
def cifar_c(
    num_classes: int = 10,
    in_channels: int = 3,
    blur: bool = False,
    widths: Sequence[int] = (32, 64, 136),
    depths: Sequence[int] = (1, 2, 2),
) -> nn.Sequential:
    """Build a network that spends its parameters where maps are small, and its time where it is cheap: 140,586.

    On processors a depthwise convolution of a large map takes as long as a dense one of a quarter of the channels,
    and batch norm on it even longer. So the first stage is narrow and dense, with few layers, and the separable
    blocks of :func:`cifar_b` begin behind the first pool.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias the two pools.
        widths: channels of each stage.
        depths: residual blocks in each stage.
    """
    check_stages("cifar-c", 3, widths=widths, depths=depths)
    first, second, third = widths
    stages = [
        nn.Sequential(conv_bn(in_channels, first, 3), *(DenseResidual(first) for _ in range(depths[0]))),
        nn.Sequential(
            max_pool(first, blur), conv_bn(first, second, 3), *(SeparableResidual(second) for _ in range(depths[1]))
        ),
        nn.Sequential(
            max_pool(second, blur),
            _half(second, third),
            nn.ReLU(),
            *(SeparableResidual(third) for _ in range(depths[2])),
        ),
    ]
    return _network(stages, third, num_classes, bias=True)
