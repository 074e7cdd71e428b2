"""The deep networks of the conflicting-layer papers (Peer, Stabinger and Rodriguez-Sanchez, 2021), up to 150 layers.

Blocks of two convolutions in four groups, without shortcuts (VGG-type) or with (ResNet-type). Shapes and counts are
those of the published code; it pads strided convolutions at the right and below only, here it is half a kernel at
each side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from convwright.zoo.parts import add_stages, check_stages, classify, scaled
from convwright.zoo.registry import register
from convwright.zoo.resnet import BasicBlock

_WIDTHS = (64, 128, 256, 512)
_DEPTHS = (3, 12, 41, 3)
_SOURCE = "Peer et al. 2021, published code"


class PairBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU, twice; nothing leads around them.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        out_channels: width of the output and between the convolutions.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        x = self.relu(self.bn1(self.conv1(x)))
        out: torch.Tensor = self.relu(self.bn2(self.conv2(x)))
        return out


class ShortcutBlock(BasicBlock):
    """The same with a shortcut around it, joined before the last ReLU.

    Shapes: as for `PairBlock`; the shortcut is a 1x1 convolution with batch norm where the stride is 2.

    Args:
        in_channels: width of the input.
        out_channels: width of the output and between the convolutions.
        stride: of the first convolution and of the shortcut.
        zero_last: whether the last batch norm begins with scales of 0, so that the block begins as its shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, zero_last: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride, bias=True)
        if zero_last:
            nn.init.zeros_(self.bn2.weight)


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
        return ShortcutBlock(before, after, stride, zero_last) if residual else PairBlock(before, after, stride)

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
