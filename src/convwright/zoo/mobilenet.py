"""MobileNet v1 for small images (Howard et al., "MobileNets", 2017).

The ImageNet network divides the image side by 32. For 32 pixels the stem has stride 1 instead of 2,
so that the last stage still sees a 2x2 map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from convwright.zoo.parts import check_stages, classify, conv_bn, scaled
from convwright.zoo.registry import register

_STEM = 32


def separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            depthwise=conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
            pointwise=conv_bn(in_channels, out_channels),
        )
    )


@register(
    "mobilenet-v1",
    input_shape=(3, 32, 32),
    num_classes=10,
    source="Howard et al. 2017, with the strides for 32 pixels",
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
        depths: depthwise-pointwise blocks in each stage; every stage but the first halves the
            image.
    """
    check_stages("mobilenet-v1", 5, widths=widths, depths=depths)
    channels = scaled(_STEM, width)
    layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, channels, 3))
    for number, (base, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        stage = nn.Sequential()
        for index in range(depth):
            stride = 2 if index == 0 and number > 1 else 1
            stage.append(separable(channels, scaled(base, width), stride))
            channels = scaled(base, width)
        layers[f"stage{number}"] = stage
    return nn.Sequential(layers | classify(channels, num_classes))
