"""The deep networks of the conflicting-layer papers (Peer, Stabinger and Rodriguez-Sanchez, 2021), up to 150 layers.

Blocks of two convolutions in four groups, without shortcuts (VGG-type) or with (ResNet-type). Shapes and counts are
those of the published code; it pads strided convolutions at the right and below only, here it is half a kernel at
each side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from convwright.zoo.parts import add_stages, check_stages, classify, scaled
from convwright.zoo.registry import register
from convwright.zoo.resnet import BasicBlock, PairBlock

_WIDTHS = (64, 128, 256, 512)
_DEPTHS = (3, 12, 41, 3)
_SOURCE = "Peer et al. 2021, published code"


def _network(
    name: str, depths: Sequence[int], width: float, num_classes: int, in_channels: int, residual: bool, zero_last: bool
) -> nn.Sequential:
    check_stages(name, len(_WIDTHS), depths=depths)
    widths = [scaled(base, width) for base in _WIDTHS]
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, widths[0], 7, 2, padding=3), bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU()
    )

    def block(stage: int, place: int, before: int, after: int) -> nn.Module:
        stride = 2 if stage and not place else 1
        made = BasicBlock(before, after, stride, bias=True) if residual else PairBlock(before, after, stride)
        if zero_last:
            nn.init.zeros_(made.bn2.weight)
        return made

    channels = add_stages(layers, widths[0], widths, depths, block, "layer")
    network = nn.Sequential(layers | classify(channels, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


@register("vgg120", input_shape=(3, 32, 32), num_classes=10, source=_SOURCE)
def vgg120(
    num_classes: int = 10, in_channels: int = 3, width: float = 1.0, depths: Sequence[int] = _DEPTHS
) -> nn.Sequential:
    """Build the VGG-type network: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of the widths 64, 128, 256 and 512.
        depths: blocks of two convolutions in each group; groups from the second on begin with stride 2. The layers
            are twice their sum, and stem and classifier.
    """
    return _network("vgg120", depths, width, num_classes, in_channels, residual=False, zero_last=False)


@register("resnet120", input_shape=(3, 32, 32), num_classes=10, source=_SOURCE)
def resnet120(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    depths: Sequence[int] = _DEPTHS,
    zero_last: bool = False,
) -> nn.Sequential:
    """Build the ResNet-type network: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of the widths 64, 128, 256 and 512.
        depths: blocks of two convolutions in each group; groups from the second on begin with stride 2.
        zero_last: whether each branch begins as 0: its last batch norm's scales do.
    """
    return _network("resnet120", depths, width, num_classes, in_channels, residual=True, zero_last=zero_last)


@register("perceptron", input_shape=(1, 28, 28), num_classes=10, source=_SOURCE)
def perceptron(
    num_classes: int = 10, in_channels: int = 1, width: int = 50, depth: int = 50, side: int = 28
) -> nn.Sequential:
    """Build a fully connected network: (N, in_channels, H, W) -> (N, num_classes).

    Weights are uniform after He, those of the classifier after Glorot, biases 0, as published.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: of each hidden layer.
        depth: hidden layers.
        side: of the image; others are averaged to it.
    """
    layers = OrderedDict[str, nn.Module](resize=nn.AdaptiveAvgPool2d(side), flatten=nn.Flatten(1))
    features = in_channels * side * side
    for number in range(1, depth + 1):
        layer = nn.Linear(features, width)
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers[f"fc{number}"], layers[f"relu{number}"] = layer, nn.ReLU()
        features = width
    last = nn.Linear(features, num_classes)
    nn.init.xavier_uniform_(last.weight)
    nn.init.zeros_(last.bias)
    layers["classifier"] = last
    return nn.Sequential(layers)
