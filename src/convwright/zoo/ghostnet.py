"""GhostNet (Han et al. 2020) and the stage-wise scaled networks of Greedy Network Enlarging (2021).

A ghost module makes half of its channels with a pointwise convolution and the other half from those with a cheap
depthwise one. ``ghostnet`` is the published table; ``ghostnet-large`` is the generator with free stage widths and
depths that the enlarging authors released as S-GhostNet, and the two ``s-ghostnet`` entries are the networks of their
release notes. The resolution of all is the size of the image that is fed: nothing in the network fixes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from convwright.zoo.parts import check_stages, conv_bn, divisible
from convwright.zoo.registry import register

_KERNELS = (3, 3, 5, 3, 3, 5)
_STRIDES = (1, 2, 2, 2, 1, 2)
_HEAD = 1280  # the least width of the hidden layer of the generator's head
_HAN = "Han et al. 2020"
_ENLARGING = "S-GhostNet release of Greedy Network Enlarging (Liu et al. 2021)"


class GhostModule(nn.Module):
    """A pointwise convolution for one half of the channels, a depthwise one for the other half.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H, W).

    The published module makes ceil(out / 2) channels twice and cuts the concatenation to ``out``.
    That cut writes a width into ``forward``. It does nothing for even ``out``, and every width in
    this file is a multiple of 4, so there is no cut here and odd widths are refused.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, even.
        activation: nonlinearity after each of the two convolutions; None for none.
    """

    def __init__(self, in_channels: int, out_channels: int, activation: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"a ghost module needs an even output width, not {out_channels}")
        half = out_channels // 2
        self.primary = conv_bn(in_channels, half, activation=activation)
        self.cheap = conv_bn(half, half, 3, groups=half, activation=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the primary channels followed by their ghosts."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)


@dataclass(frozen=True)
class BlockSpec:
    """What one ghost bottleneck is made of.

    Attributes:
        expansion: channels between its two ghost modules.
        out_channels: channels of its output.
        kernel_size: of the depthwise convolutions that carry the stride.
        stride: 1 or 2.
        squeeze: channels of the squeeze-and-excitation bottleneck; 0 for none.
    """

    expansion: int
    out_channels: int
    kernel_size: int
    stride: int
    squeeze: int


class GhostBottleneck(nn.Module):
    """Ghost module up, depthwise stride, squeeze-and-excitation, ghost module down; shortcut.

    Shapes: (N, in_channels, H, W) -> (N, spec.out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: width of the input.
        spec: everything else.
    """

    def __init__(self, in_channels: int, spec: BlockSpec) -> None:
        super().__init__()
        depthwise = partial(conv_bn, kernel_size=spec.kernel_size, stride=spec.stride, activation=None)
        wide, out = spec.expansion, spec.out_channels
        branch = OrderedDict[str, nn.Module](expand=GhostModule(in_channels, wide))
        if spec.stride > 1:
            branch["depthwise"] = depthwise(wide, wide, groups=wide)
        if spec.squeeze:
            branch["squeeze"] = SqueezeExcitation(wide, spec.squeeze, scale_activation=nn.Hardsigmoid)
        branch["project"] = GhostModule(wide, out, activation=None)
        self.branch = nn.Sequential(branch)
        self.shortcut: nn.Module = nn.Identity()
        if spec.stride > 1 or in_channels != out:
            self.shortcut = nn.Sequential(
                depthwise(in_channels, in_channels, groups=in_channels), conv_bn(in_channels, out, activation=None)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return branch(x) + shortcut(x); no activation follows."""
        out: torch.Tensor = self.branch(x) + self.shortcut(x)
        return out


def _network(
    stages: Sequence[Sequence[BlockSpec]], ends: tuple[int, int, int], num_classes: int, in_channels: int,
    activation: type[nn.Module], dropout: float, stem_stride: int = 2,
) -> nn.Sequential:  # fmt: skip
    """Return stem, stages and head: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    The ends are the channels of the stem, of what is pooled, and between pooling and the classifier.
    """
    channels, pooled, hidden = ends
    stem = conv_bn(in_channels, channels, 3, stem_stride, activation=activation)
    layers = OrderedDict[str, nn.Module](stem=stem)
    for number, specs in enumerate(stages, start=1):
        inputs = [channels, *(spec.out_channels for spec in specs)]
        layers[f"stage{number}"] = nn.Sequential(*map(GhostBottleneck, inputs, specs))
        channels = inputs[-1]
    layers["head"] = conv_bn(channels, pooled)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["hidden"] = nn.Conv2d(pooled, hidden, 1)
    layers["act"] = activation()
    layers["flatten"] = nn.Flatten(1)
    layers["dropout"] = nn.Dropout(dropout)
    layers["fc"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)


# Expansions and, with the same shape, who has squeeze-and-excitation, stage by stage.
_EXPANSIONS = ((16,), (48, 72), (72, 120), (240, 200, 184, 184), (480, 672), (672, 960, 960, 960, 960))
_SQUEEZED = (
    (False,),
    (False, False),
    (True, True),
    (False, False, False, False),
    (True, True),
    (True, False, True, False, True),
)


@register("ghostnet", input_shape=(3, 224, 224), num_classes=1000, source=_HAN)
def ghostnet(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2) -> nn.Sequential:
    """Build GhostNet from its published table: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of every width but the hidden one, rounded to multiples of 4.
        dropout: probability before the classifier.
    """
    stages = []
    for index, out in enumerate((16, 24, 40, 80, 112, 160)):
        specs: list[BlockSpec] = []
        for base, squeezed in zip(_EXPANSIONS[index], _SQUEEZED[index], strict=True):
            expansion = divisible(base * width, 4)
            stride = 1 if specs else _STRIDES[index]
            squeeze = divisible(expansion * 0.25, 4) if squeezed else 0
            specs.append(BlockSpec(expansion, divisible(out * width, 4), _KERNELS[index], stride, squeeze))
        stages.append(specs)
    ends = divisible(16 * width, 4), divisible(960 * width, 4), 1280
    return _network(stages, ends, num_classes, in_channels, nn.ReLU, dropout)


# How many times wider a block is inside. The first block of a stage expands the width that comes in
# (stage 1: its own), later blocks expand the stage's width.
_FIRST_RATIOS = (1.0, 3.0, 3.0, 6.0, 6.0, 6.0)
_LATER_RATIOS = (1.0, 3.0, 3.0, 2.5, 6.0, 6.0)


def large_stages(
    widths: Sequence[int], depths: Sequence[int], strides: Sequence[int] = _STRIDES
) -> list[list[BlockSpec]]:
    """Return the blocks of the generator's six stages for widths that are multiples of 4."""
    stages: list[list[BlockSpec]] = [[] for _ in depths]
    for i, (specs, out, kernel) in enumerate(zip(stages, widths, _KERNELS, strict=True)):
        # The stem is as wide as stage 1, so stage 1 expands its own width like the others do.
        first, later = _FIRST_RATIOS[i] * widths[max(0, i - 1)], _LATER_RATIOS[i] * out
        for block in range(depths[i]):
            wide = divisible(later if block else first, 4)
            specs.append(BlockSpec(wide, out, kernel, 1 if block else strides[i], squeeze=divisible(wide * 0.1, 8)))
    return stages


def _large_ends(widths: Sequence[int], head_width: int) -> tuple[int, int, int]:
    return widths[0], 6 * widths[-1], max(head_width, 5 * widths[-1])


def large_layers(widths: Sequence[int], depths: Sequence[int], head_width: int = _HEAD) -> dict[str, int]:
    """Return the output channels of every layer of `ghostnet_large` that carries channels of its own, by name.

    What a width search needs to follow the generator: expansions, squeezes and the head are not in proportion to the
    stages' widths, since each is rounded by itself, and squeezes to multiples of 8.

    Args:
        widths: output channels of the six stages, multiples of 4.
        depths: blocks in each stage.
        head_width: the head's hidden layer is at least so wide.
    """
    layers = dict(zip(("stem.conv", "head.conv", "hidden"), _large_ends(widths, head_width), strict=True))
    for number, specs in enumerate(large_stages(widths, depths), start=1):
        for index, spec in enumerate(specs):
            branch = f"stage{number}.{index}.branch"
            for half in ("primary.conv", "cheap.conv"):
                layers[f"{branch}.expand.{half}"] = spec.expansion // 2
                layers[f"{branch}.project.{half}"] = spec.out_channels // 2
            layers[f"{branch}.squeeze.fc1"] = spec.squeeze
    return layers


@register("ghostnet-large", input_shape=(3, 224, 224), num_classes=1000, source=_ENLARGING)
def ghostnet_large(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] = (16, 24, 40, 80, 112, 160),
    depths: Sequence[int] = (1, 2, 2, 4, 2, 5),
    dropout: float = 0.2,
    stem_stride: int = 2,
    strides: Sequence[int] = _STRIDES,
    head_width: int = _HEAD,
) -> nn.Sequential:
    """Build a ghost network with free stage widths and depths, all blocks squeezed and excited.

    Shapes: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: multiplier of ``widths``.
        widths: output channels of the six stages, rounded to multiples of 4 after scaling.
        depths: blocks in each stage, at least one.
        dropout: probability before the classifier.
        stem_stride: of the stem convolution; 1 keeps maps of small images twice as large. Published: 2.
        strides: of the first block of each stage, 1 or 2. Published: 1, 2, 2, 2, 1, 2.
        head_width: the hidden layer of the head is at least so wide, and 5 times the last stage. Published: 1280.
    """
    check_stages("ghostnet-large", 6, widths=widths, depths=depths, strides=strides)
    outs = [divisible(base * width, 4) for base in widths]
    stages, ends = large_stages(outs, depths, strides), _large_ends(outs, head_width)
    return _network(stages, ends, num_classes, in_channels, nn.Hardswish, dropout, stem_stride)


# Name, side of the images, dropout, widths and depths. The widths of b1 are the base widths times 1.75 and only its
# depths differ by stage, so it may not be the result of the greedy search. eval-b1 is what the release's evaluation
# script for b1 has by default: its widths and depths differ from the base by other ratios in each stage, as those of a
# greedy search would; the release gives no accuracy for it. The example is the release's single-device one; its
# resolution is not given, 384 is that of b4.
_RELEASED = (
    ("s-ghostnet-b1", 240, 0.2, (28, 44, 72, 140, 196, 280), (1, 2, 3, 4, 3, 6)),
    ("s-ghostnet-b4", 384, 0.3, (36, 60, 108, 168, 232, 336), (3, 5, 5, 12, 6, 14)),
    ("s-ghostnet-eval-b1", 248, 0.2, (24, 32, 64, 112, 160, 280), (2, 2, 5, 10, 2, 10)),
    ("s-ghostnet-example", 384, 0.3, (36, 68, 108, 164, 216, 336), (2, 4, 5, 12, 6, 14)),
)


def _file(name: str, side: int, usual: float, widths: Sequence[int], depths: Sequence[int]) -> None:
    @register(name, input_shape=(3, side, side), num_classes=1000, source=_ENLARGING)
    def build(
        num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = usual
    ) -> nn.Sequential:
        return ghostnet_large(num_classes, in_channels, width, widths, depths, dropout)


for _released in _RELEASED:
    _file(*_released)
