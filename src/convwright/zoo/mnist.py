"""The MNIST networks of "Training Efficient CNNs" (Ethiraj and Bolla, 2022), phase by phase.

Their paper shrinks one network step by step: a plain one (base), 1x1 convolutions that narrow the
network before each pool (M1), one depthwise separable block (M1d), the last convolution dropped
(M2, M2d), and depthwise separable convolutions everywhere (M3). The layer lists are those of the
authors' published code. Its classifier, a 1x1 convolution on the pooled 1x1 map, is a linear layer
here: the same function with the same parameters. The networks return logits.

Two networks keep to 1,500 parameters, which M3 in fact exceeds: A is M3 with fewer last channels, B
is a reconstruction of ours, not from the paper.

All take 28x28 images and any larger size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from convwright.zoo.parts import check_stages, classify, max_pool
from convwright.zoo.registry import register

_SHAPE = (1, 28, 28)
_PAPER = "Ethiraj and Bolla 2022"

# Each layer is a letter and the channels that it gives: c 3x3 convolution, s depthwise 3x3 directly followed by
# pointwise, each with ReLU and batch norm, and with padding where the letter is large; n bare 1x1 convolution that
# narrows the network before a pool; p pool. d is a dropout, in percent.
_PHASES = (
    ("mnist-base", "phase 0", "c8 c16 d5 p c32 c64 d17 p"),  # 25,144 parameters
    ("mnist-m1", "phase 1", "c8 c12 d5 n8 p c12 c16 d17 n12 p C15 d17 C15"),  # 7,767
    ("mnist-m2", "phase 2", "c8 c12 d5 n8 p c12 c16 d17 n12 p C15 d17"),  # 5,712
    ("mnist-m2d", "phase 2, one depthwise block", "c8 s12 d5 n8 p c13 c18 d17 n12 p C16 d17"),  # 5,616
    ("mnist-deep", "all depthwise, untrained there", "c10 s12 d5 n10 p s13 s16 d17 n12 p S15 d17 S15"),  # 2,117
)
_M1D = "c10 s12 d5 n10 p c{} c16 d17 n12 p C15 d17 C15"
_M3 = "c8 s12 d5 n8 p s12 s16 d17 n12 p S{} d17"


def _conv(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False)]


def _separable(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels, bias=False)
    return [depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False)]


def _network(features: Iterable[nn.Module], channels: int, num_classes: int, bias: bool) -> nn.Sequential:
    """Return the features followed by global average pool and classifier, named for reading."""
    layers = OrderedDict[str, nn.Module](features=nn.Sequential(*features))
    return nn.Sequential(layers | classify(channels, num_classes, bias))


def _phase(layers: str, num_classes: int, in_channels: int, blur: bool, bias: bool = False) -> nn.Sequential:
    features, channels = list[nn.Module](), in_channels
    for layer in layers.split():
        letter, size = layer[0], int(layer[1:] or 0)
        if letter == "p":
            features.append(max_pool(channels, blur))
        elif letter == "d":
            features.append(nn.Dropout(size / 100))
        elif letter == "n":
            features.append(nn.Conv2d(channels, size, 1, bias=False))
        else:
            unit = {"c": _conv, "s": _separable}[letter.lower()]
            convs = unit(channels, size, padding=int(letter.isupper()))
            features.append(nn.Sequential(*convs, nn.ReLU(), nn.BatchNorm2d(size)))
        channels = channels if letter in "pd" else size
    return _network(features, channels, num_classes, bias)


def _file(name: str, source: str, layers: str) -> None:
    @register(name, input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, {source}")
    def build(num_classes: int = 10, in_channels: int = 1, blur: bool = False) -> nn.Sequential:
        return _phase(layers, num_classes, in_channels, blur)


for _each in _PHASES:
    _file(*_each)


@register("mnist-m1d", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 1, one depthwise block")
def mnist_m1d(num_classes: int = 10, in_channels: int = 1, blur: bool = False, third: int = 13) -> nn.Sequential:
    """Build phase 1 with one depthwise separable block: 7,611 parameters.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias both pools.
        third: channels of the third convolution; the run with 7,847 parameters fits 14.
    """
    return _phase(_M1D.format(third), num_classes, in_channels, blur)


@register("mnist-m3", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 3")
def mnist_m3(num_classes: int = 10, in_channels: int = 1, blur: bool = False, head_bias: bool = False) -> nn.Sequential:
    """Build phase 3, of the "1500 parameters" headline: 1,560, or 1,570 with a head bias."""
    return _phase(_M3.format(15), num_classes, in_channels, blur, head_bias)


@register("mnist-a", input_shape=_SHAPE, num_classes=10, source=f"{_PAPER}, phase 3 cut to 1,500 parameters")
def mnist_a(num_classes: int = 10, in_channels: int = 1, blur: bool = True, head_bias: bool = False) -> nn.Sequential:
    """Build phase 3 with 12 last channels: 1,488 parameters, or 1,498 with a head bias."""
    return _phase(_M3.format(12), num_classes, in_channels, blur, head_bias)


def _norm_first(convs: Iterable[nn.Module], channels: int) -> nn.Sequential:
    """Return the order that network B uses: batch norm, then ReLU."""
    return nn.Sequential(*convs, nn.BatchNorm2d(channels), nn.ReLU())


class SharedUnit(nn.Module):
    """A depthwise separable convolution applied several times, each with a batch norm of its own, and ReLU.

    Shapes: (N, C, H, W) -> (N, C, H, W), or two less along both sides each time with ``padding=0``.

    Args:
        channels: C.
        times: how often.
        padding: of the depthwise convolution.
    """

    def __init__(self, channels: int, times: int, padding: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=padding, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last application's output."""
        for norm in self.norms:
            x = torch.relu(norm(self.pointwise(self.depthwise(x))))
        return x


@register("mnist-b", input_shape=_SHAPE, num_classes=10, source="reconstructed for a 1,500 limit")
def mnist_b(
    num_classes: int = 10,
    in_channels: int = 1,
    blur: bool = True,
    widths: Sequence[int] = (8, 14, 16),
    times: int = 1,
    padding: int = 0,
) -> nn.Sequential:
    """Build our own network for the same budget: 1,460 parameters.

    It spends what M3 gives to narrowing convolutions on wider separable ones, puts batch norm
    before the ReLU, and has no dropout: networks this small underfit.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        blur: anti-alias the two pools.
        widths: channels of the first convolution, of the unit before the first pool, and of all later ones;
            (6, 10, 12) makes 972 parameters.
        times: how often the unit before the second pool is applied, with the same weights but batch norms of its
            own: depth for 2 * C parameters (1,492 with two).
        padding: of the units between the pools; 1 keeps 12x12 positions instead of shrinking to 8x8.
    """
    check_stages("mnist-b", 3, widths=widths)
    first, second, last = widths
    return _network(
        (
            _norm_first(_conv(in_channels, first), first),
            _norm_first(_separable(first, second), second),
            max_pool(second, blur),
            _norm_first(_separable(second, last, padding), last),
            _norm_first(_separable(last, last, padding), last) if times == 1 else SharedUnit(last, times, padding),
            max_pool(last, blur),
            _norm_first([nn.Conv2d(last, last, 3, padding=1, groups=last, bias=False)], last),
        ),
        last,
        num_classes,
        bias=True,
    )
