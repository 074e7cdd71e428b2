"""Residual networks for small images (He et al., "Deep Residual Learning", 2016).

Two shapes of the same network: the thin three-stage ones of the CIFAR section (20, 32, 56 layers),
and the ImageNet depths (18, 34, 50) with a stem for small images, of which the 34-layer one is the
network that the CONetV2 channel search starts from.

Shortcuts that change shape are a 1x1 convolution with batch norm ("option B"). The thin networks of the paper pad with
zero channels instead ("option A", 2,752 parameters fewer); a padded shortcut ties channel k of one stage to channel k
of the next and wires the difference of two widths into the network, which a width search must be free to change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from convwright.zoo.parts import add_stages, check_stages, classify, scaled
from convwright.zoo.registry import register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: stride of the first convolution and of the shortcut.
        bias: whether convolutions have biases.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, bias)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(branch(x) + shortcut(x))."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        out: torch.Tensor = self.relu(branch + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a shortcut around them; the 3x3 one, a quarter as wide, carries the stride.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: stride of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        mid = max(1, out_channels // 4)
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(branch(x) + shortcut(x))."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        out: torch.Tensor = self.relu(branch + self.downsample(x))
        return out


def shortcut(in_channels: int, out_channels: int, stride: int, bias: bool = False) -> nn.Module:
    """Return what leads around a block: nothing, or a 1x1 convolution with batch norm where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias), nn.BatchNorm2d(out_channels))


class ResNet(nn.Sequential):
    """A residual network; layers carry torchvision's names (``layer1.0.conv1``), every later stage halves the image."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights; all other layers are as PyTorch initialises them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_HE = "He et al. 2016"
_SMALL_IMAGES = f"{_HE}, with a 3x3 stem and no max pool"
_THREE, _FOUR = (16, 32, 64), (64, 128, 256, 512)

# Name, source, widths and depths. Of bottlenecks the widths are those in the middle, with the stride on the 3x3
# convolution. resnet34_cifar has 36 convolutions with these widths; with four equal ones the first block of each later
# stage still has its 1x1 shortcut, because the stride is 2. ``widths=(16,) * 4`` is where the CONetV2 search starts.
_NETWORKS = (
    ("resnet20", _HE, _THREE, (3, 3, 3)),
    ("resnet32", _HE, _THREE, (5, 5, 5)),
    ("resnet56", _HE, _THREE, (9, 9, 9)),
    ("resnet18_cifar", _SMALL_IMAGES, _FOUR, (2, 2, 2, 2)),
    ("resnet34_cifar", "reference code of CONetV2 (Wang et al. 2021)", _FOUR, (3, 4, 6, 3)),
    ("resnet50_cifar", _SMALL_IMAGES, _FOUR, (3, 4, 6, 3)),
)


def _file(name: str, source: str, usual_widths: Sequence[int], usual_depths: Sequence[int]) -> None:
    @register(name, input_shape=(3, 32, 32), num_classes=10, source=source)
    def build(
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        widths: Sequence[int] = usual_widths,
        depths: Sequence[int] = usual_depths,
    ) -> ResNet:
        check_stages("This ResNet", len(widths), depths=depths)
        kind, expansion = (Bottleneck, 4) if name == "resnet50_cifar" else (BasicBlock, 1)
        sizes = [scaled(base, width) for base in widths]
        stem = nn.Conv2d(in_channels, sizes[0], 3, padding=1, bias=False)
        layers = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(sizes[0]), relu=nn.ReLU())

        def block(stage: int, place: int, before: int, after: int) -> nn.Module:
            return kind(before, after, stride=2 if stage and not place else 1)

        channels = add_stages(layers, sizes[0], [expansion * size for size in sizes], depths, block, "layer")
        return ResNet(layers | classify(channels, num_classes))


for _network in _NETWORKS:
    _file(*_network)
