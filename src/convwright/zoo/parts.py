"""Pieces that several families share: rounding, convolution units, pooling, the classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

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
