"""MobileNet v1 and v2 for small images (Howard et al., "MobileNets", 2017; Sandler et al., "MobileNetV2", 2018).

The ImageNet networks divide the image side by 32. For 32 pixels the stem has stride 1 instead of 2,
in v2 the second stage, too, so that the last stage of v1 sees a 2x2 map and that of v2 a 4x4 one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from convwright.zoo.parts import (
    InvertedResidual,
    add_stages,
    check_stages,
    classify,
    conv_bn,
    divisible,
    scaled,
    separable,
)
from convwright.zoo.registry import register

_STEM = 32


@register(
    "mobilenet-v1", input_shape=(3, 32, 32), num_classes=10, source="Howard et al. 2017, with the strides for 32 pixels"
)
def mobilenet_v1(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    depths: Sequence[int] = (1, 2, 2, 6, 2),
) -> nn.Sequential:
    """Build MobileNet v1: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of the stem and of all ``widths``.
        widths: output channels of each stage.
        depths: depthwise-pointwise blocks in each stage; every stage but the first halves the image.
    """
    check_stages("mobilenet-v1", 5, widths=widths, depths=depths)
    stem = scaled(_STEM, width)
    layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, stem, 3))

    def block(stage: int, place: int, before: int, after: int) -> nn.Module:
        return separable(before, after, stride=2 if stage and not place else 1)

    channels = add_stages(layers, stem, [scaled(base, width) for base in widths], depths, block)
    return nn.Sequential(layers | classify(channels, num_classes))


# Of v2: how much wider a block is inside, and the stride of each stage's first block on 32 pixels.
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_STRIDES = (1, 1, 2, 2, 1, 2, 1)
_LAST = 1280


class MobileNetV2(nn.Sequential):
    """MobileNet v2, which draws its weights as the original does."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions and classifier as the original does; batch norm is as PyTorch initialises it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)


@register(
    "mobilenet-v2",
    input_shape=(3, 32, 32),
    num_classes=10,
    source="Sandler et al. 2018, torchvision's definition without dropout, with the strides for 32 pixels",
)
def mobilenet_v2(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] = (16, 24, 32, 64, 96, 160, 320),
    depths: Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
    divisor: int = 8,
    stem_stride: int = 1,
) -> MobileNetV2:
    """Build MobileNet v2: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of the stem, of all ``widths`` and, above 1, of the last convolution.
        widths: output channels of each stage.
        depths: blocks in each stage.
        divisor: widths are rounded to multiples of it; small networks take a smaller one.
        stem_stride: stride of the stem; 2 as in the original makes all maps a quarter as large.
    """
    check_stages("mobilenet-v2", len(_STRIDES), widths=widths, depths=depths)
    stem, last = divisible(_STEM * width, divisor), divisible(_LAST * max(1.0, width), divisor)
    layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, stem, 3, stem_stride, activation=nn.ReLU6))

    def block(stage: int, place: int, before: int, after: int) -> nn.Module:
        return InvertedResidual(before, after, 1 if place else _STRIDES[stage], _EXPANSIONS[stage])

    channels = add_stages(layers, stem, [divisible(base * width, divisor) for base in widths], depths, block)
    layers["last"] = conv_bn(channels, last, activation=nn.ReLU6)
    return MobileNetV2(layers | classify(last, num_classes))
