"""Pieces that several families share: rounding, convolution units, pooling, the classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from convwright.errors import ReadError


def scaled(base: int, width: float) -> int:
    """Return a base width times a multiplier, rounded, at least 1."""
    return max(1, round(base * width))


def divisible(value: float, divisor: int) -> int:
    """Return the multiple of ``divisor`` nearest to ``value``, but never below 90 % of it.

    The rounding rule of the mobile networks (MobileNetV2 and its descendants).
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


def check_stages(network: str, stages: int, **lists: Sequence[object]) -> None:
    """Check that every per-stage list has one value per stage.

    Raises:
        ReadError: a list is longer or shorter.
    """
    for name, values in lists.items():
        if len(values) != stages:
            raise ReadError(
                f"{network} has {stages} stages, but {name}={tuple(values)!r} has {len(values)}"
                f" values. Give one per stage."
            )


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
    bias: bool = False,
) -> nn.Sequential:
    """Return convolution (same padding), batch norm and, unless None, an activation.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias
        ),
        bn=nn.BatchNorm2d(out_channels),
    )
    if activation is not None:
        layers["act"] = activation()
    return nn.Sequential(layers)


def separable(
    in_channels: int, out_channels: int, stride: int = 1, activation: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return a depthwise 3x3 and a pointwise convolution, each as `conv_bn`; `activation` is the second one's.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            depthwise=conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
            pointwise=conv_bn(in_channels, out_channels, activation=activation),
        )
    )


class InvertedResidual(nn.Module):
    """Pointwise convolution to a wide layer, depthwise, pointwise back; with a shortcut where shapes agree.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: of the depthwise convolution.
        expansion: width inside, in units of ``in_channels``; with 1 there is no first convolution.
        kernel_size: of the depthwise convolution.
        activation: nonlinearity after the first two convolutions, and inside squeeze-and-excitation.
        squeeze: width that squeeze-and-excitation narrows to behind the depthwise convolution; 0: there is none.
        drop_path: probability with which the branch is left out in training, per image.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        kernel_size: int = 3,
        activation: type[nn.Module] = nn.ReLU6,
        squeeze: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers = OrderedDict[str, nn.Module]()
        if expansion != 1:
            layers["expand"] = conv_bn(in_channels, wide, activation=activation)
        layers["depthwise"] = conv_bn(wide, wide, kernel_size, stride, groups=wide, activation=activation)
        if squeeze:
            layers["squeeze"] = SqueezeExcitation(wide, squeeze, activation=activation)
        layers["project"] = conv_bn(wide, out_channels, activation=None)
        self.residual = stride == 1 and in_channels == out_channels
        if self.residual and drop_path:
            layers["drop_path"] = StochasticDepth(drop_path, "row")
        self.branch = nn.Sequential(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + branch(x), or the branch alone where shapes differ."""
        out: torch.Tensor = x + self.branch(x) if self.residual else self.branch(x)
        return out


def add_stages(
    layers: OrderedDict[str, nn.Module],
    channels: int,
    widths: Sequence[int],
    depths: Sequence[int],
    block: Callable[[int, int, int, int], nn.Module],
    name: str = "stage",
) -> int:
    """Add stages of blocks to layers, called ``stage1``, ``stage2``, ...; return the width of the last.

    Args:
        layers: of the network so far.
        channels: width of what enters the first stage.
        widths: of each stage.
        depths: blocks in each stage.
        block: makes a block from the number of its stage and its own within it, from 0, and its two widths.
        name: what stages are called.
    """
    for number, (out, depth) in enumerate(zip(widths, depths, strict=True)):
        stage = layers[f"{name}{number + 1}"] = nn.Sequential()
        for place in range(depth):
            stage.append(block(number, place, channels, out))
            channels = out
    return channels


def max_pool(channels: int, blur: bool) -> nn.Module:
    """Return a 2x2 max pool with stride 2, anti-aliased if ``blur``.

    Anti-aliased (Zhang 2019): the maximum is taken densely, then a fixed 3x3 binomial filter does
    the sub-sampling. The border is padded with zeros, as in the experiments the MNIST and CIFAR
    networks come from; timm pads by reflection unless told.

    Shapes: (N, channels, H, W) -> (N, channels, H // 2, W // 2), blurred or not.
    """
    if not blur:
        return nn.MaxPool2d(2)
    # Here, not above: importing timm takes longer than building any of these networks.
    from timm.layers.blur_pool import BlurPool2d

    # With `channels` given, timm keeps one filter per channel, so a width edit finds the channel axis. Without it the
    # filter is expanded in `forward` and a captured graph holds the width as a constant.
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            max=nn.MaxPool2d(2, stride=1), blur=BlurPool2d(channels, filt_size=3, stride=2, pad_mode="constant")
        )
    )


def classify(channels: int, num_classes: int, bias: bool = True) -> OrderedDict[str, nn.Module]:
    """Return global average pool, flatten, linear, named: (N, C, H, W) -> (N, num_classes)."""
    return OrderedDict[str, nn.Module](
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1), fc=nn.Linear(channels, num_classes, bias=bias)
    )
