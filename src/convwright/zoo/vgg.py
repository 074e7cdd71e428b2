"""VGG-16 with batch norm for small images (Simonyan and Zisserman, 2015).

The usual CIFAR form: the 13 convolutions with biases and batch norm, and one linear layer in place
of the three large ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from convwright.zoo.parts import add_stages, check_stages, classify, conv_bn, scaled
from convwright.zoo.registry import register


@register(
    "vgg16-bn",
    input_shape=(3, 32, 32),
    num_classes=10,
    source="Simonyan and Zisserman 2015, CIFAR form with batch norm",
)
def vgg16_bn(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    depths: Sequence[int] = (2, 2, 3, 3, 3),
) -> nn.Sequential:
    """Build VGG-16: (N, in_channels, H, W) -> (N, num_classes) for H and W of at least 32.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of all ``widths``.
        widths: channels of each stage.
        depths: convolutions in each stage; a 2x2 max pool ends every stage.
    """
    check_stages("vgg16-bn", 5, widths=widths, depths=depths)
    layers = OrderedDict[str, nn.Module]()

    def block(stage: int, place: int, before: int, after: int) -> nn.Module:
        return conv_bn(before, after, 3, bias=True)

    channels = add_stages(layers, in_channels, [scaled(base, width) for base in widths], depths, block)
    for stage in layers.values():
        stage.append(nn.MaxPool2d(2))  # type: ignore[operator]
    return nn.Sequential(layers | classify(channels, num_classes))
