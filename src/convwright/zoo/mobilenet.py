"""MobileNet v1 and v2 for small images (Howard et al., "MobileNets", 2017; Sandler et al., "MobileNetV2", 2018).

The ImageNet networks divide the image side by 32. For 32 pixels the stem has stride 1 instead of 2,
in v2 the second stage, too, so that the last stage of v1 sees a 2x2 map and that of v2 a 4x4 one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from convwright.zoo.parts import check_stages, classify, conv_bn, divisible, scaled, separable
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
    channels = scaled(_STEM, width)
    layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, channels, 3))
    for number, (base, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        stage = nn.Sequential()
        for index in range(depth):
            stage.append(separable(channels, scaled(base, width), 2 if index == 0 and number > 1 else 1))
            channels = scaled(base, width)
        layers[f"stage{number}"] = stage
    return nn.Sequential(layers | classify(channels, num_classes))


# Of v2: how much wider a block is inside, and the stride of each stage's first block on 32 pixels.
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_STRIDES = (1, 1, 2, 2, 1, 2, 1)
_LAST = 1280


class InvertedResidual(nn.Module):
    """Pointwise convolution to a wide layer, depthwise 3x3, pointwise back; with a shortcut where shapes agree.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: stride of the depthwise convolution.
        expansion: width inside, in units of ``in_channels``; with 1 there is no first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = in_channels * expansion
        layers = OrderedDict[str, nn.Module]()
        if expansion != 1:
            layers["expand"] = conv_bn(in_channels, mid, activation=nn.ReLU6)
        layers["depthwise"] = conv_bn(mid, mid, 3, stride, groups=mid, activation=nn.ReLU6)
        layers["project"] = conv_bn(mid, out_channels, activation=None)
        self.branch = nn.Sequential(layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + branch(x), or the branch alone where shapes differ."""
        out: torch.Tensor = x + self.branch(x) if self.residual else self.branch(x)
        return out


class MobileNetV2(nn.Sequential):
    """3x3 stem, stages of inverted residuals, 1x1 convolution, global average pool, linear classifier.

    Shapes: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    Args:
        widths: channels of each stage.
        depths: blocks in each stage.
        stem: channels of the stem.
        last: channels of the last convolution.
        num_classes: outputs.
        in_channels: channels of the image.
        stem_stride: stride of the stem.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: int,
        last: int,
        num_classes: int,
        in_channels: int,
        stem_stride: int = 1,
    ) -> None:
        check_stages("mobilenet-v2", len(_STRIDES), widths=widths, depths=depths)
        layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, stem, 3, stem_stride, activation=nn.ReLU6))
        channels = stem
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = nn.Sequential()
            for index in range(depth):
                stride = _STRIDES[number] if index == 0 else 1
                stage.append(InvertedResidual(channels, width, stride, _EXPANSIONS[number]))
                channels = width
            layers[f"stage{number + 1}"] = stage
        layers["last"] = conv_bn(channels, last, activation=nn.ReLU6)
        super().__init__(layers | classify(last, num_classes))
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
    sizes = [divisible(base * width, divisor) for base in widths]
    last = divisible(_LAST * max(1.0, width), divisor)
    stem = divisible(_STEM * width, divisor)
    return MobileNetV2(sizes, depths, stem, last, num_classes, in_channels, stem_stride)
