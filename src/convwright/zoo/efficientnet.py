"""EfficientNet (Tan and Le 2019): B0, and B1 to B7 by the rule that scales it.

A block widens its input, filters it depthwise, gates it by squeeze-and-excitation and narrows it again. B1 to B7 have
more blocks and channels by one factor each, and larger images; the published factors are set by hand, not the exact
powers of compound scaling. The resolution of all is the size of the image that is fed: nothing fixes it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from convwright.zoo.parts import InvertedResidual, add_stages, check_stages, conv_bn, divisible
from convwright.zoo.registry import register

_SOURCE = "Tan and Le 2019, with padding as in the PyTorch ports"
_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_STEM, _HEAD, _DIVISOR = 32, 1280, 8

# Of B0 to B7: factor of all widths, the results rounded to multiples of 8; of all depths, rounded up; side of the
# image; dropout before the classifier.
SCALINGS = (
    (1.0, 1.0, 224, 0.2),
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4),
    (1.6, 2.2, 456, 0.4),
    (1.8, 2.6, 528, 0.5),
    (2.0, 3.1, 600, 0.5),
)


class MBConv(InvertedResidual):
    """An inverted residual with squeeze-and-excitation; runs of EfficientNets are recorded with this name."""


def _scaled(channels: int, width: float) -> int:
    return channels if width == 1 else divisible(channels * width, _DIVISOR)


def _file(number: int, scale: float, depth: float, side: int, usual: float) -> None:
    def build(
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        widths: Sequence[int] = _WIDTHS,
        depths: Sequence[int] = _DEPTHS,
        dropout: float = usual,
        drop_path: float = 0.0,
    ) -> nn.Sequential:
        check_stages("efficientnet", len(_WIDTHS), widths=widths, depths=depths)
        whole = scale * width
        outs = [_scaled(out, whole) for out in widths]
        counts = [math.ceil(count * depth) for count in depths]
        stem = _scaled(_STEM, whole)
        layers = OrderedDict[str, nn.Module](stem=conv_bn(in_channels, stem, 3, 2, activation=nn.SiLU))

        def block(stage: int, place: int, before: int, after: int) -> nn.Module:
            stride, drop = (1 if place else _STRIDES[stage]), drop_path * (sum(counts[:stage]) + place) / sum(counts)
            squeeze = max(1, before // 4)  # a quarter of what enters the block, not of what is squeezed
            return MBConv(before, after, stride, _EXPANSIONS[stage], _KERNELS[stage], nn.SiLU, squeeze, drop)

        channels = add_stages(layers, stem, outs, counts, block)
        layers["head"] = conv_bn(channels, _scaled(_HEAD, whole), activation=nn.SiLU)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten(1)
        layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(_scaled(_HEAD, whole), num_classes)
        return nn.Sequential(layers)

    build.__name__ = build.__qualname__ = f"efficientnet_b{number}"
    build.__doc__ = f"""Build EfficientNet-B{number}: (N, in_channels, H, W) -> (N, num_classes) for any H and W.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: further multiplier of all widths.
        widths: output channels of B0's seven stages, which B{number} scales to multiples of 8.
        depths: blocks in each of B0's stages, which B{number} scales.
        dropout: probability before the classifier.
        drop_path: of the last block; it grows linearly from 0 at the first. Published: 0.2.
    """
    register(f"efficientnet-b{number}", input_shape=(3, side, side), num_classes=1000, source=_SOURCE)(build)


for _number, _scaling in enumerate(SCALINGS):
    _file(_number, *_scaling)
