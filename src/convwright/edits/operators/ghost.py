"""``ghost``: a ghost convolution in place of a dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convwright.edits.operators.convolutions import (
    Init,
    check_divides,
    convolution_like,
    dense_convolution,
    fill,
    placed,
    precise,
)
from convwright.edits.operators.registry import Site, operator
from convwright.layers.ghost import GhostConv2d


@operator("ghost", source="GhostNet, Han et al. 2020")
def ghost(
    old: nn.Module, site: Site, *, ratio: int = 2, cheap_kernel: int = 3, init: Init = "least_squares"
) -> nn.Module:
    """Convolution for a part of the channels, cheap depthwise copies of these for the rest.

    Parameters, with ``m = out / ratio``: kernel * in * m + cheap_kernel**2 * (out - m), and ``out`` for a bias.

    Args:
        old: a dense convolution.
        site: where it is.
        ratio: outputs per real filter.
        cheap_kernel: kernel size of the depthwise convolution, odd.
        init: ``"least_squares"``: the first filters are kept, and each other one becomes the multiple of its primary
            filter that is nearest to it (only the middle of the cheap kernel is not zero, so it is the
            nearest among copies without a shift); ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution, or its outputs do not divide by ``ratio``.
        ValueError: an option is out of range.
    """
    conv = dense_convolution("ghost", old, site)
    check_divides("ghost", site, ratio, output=conv.out_channels)
    primary = conv.out_channels // ratio
    new = placed(conv, GhostConv2d(convolution_like(conv, out_channels=primary), ratio, cheap_kernel))
    if init == "least_squares":
        _copy_filters(conv, new, ratio - 1)
    return new


def _copy_filters(conv: nn.Conv2d, new: GhostConv2d, ghosts: int) -> None:
    primary = new.primary.out_channels
    fill(new.primary.weight, conv.weight[:primary])
    scale = nearest_multiples(precise(conv.weight), primary, ghosts)
    kernel = torch.zeros_like(new.cheap.weight)
    middle = kernel.shape[-1] // 2
    kernel[:, 0, middle, middle] = scale.to(kernel.dtype)
    fill(new.cheap.weight, kernel)
    if conv.bias is not None:
        fill(new.primary.bias, conv.bias[:primary])
        shifted = conv.bias[primary:] - scale.to(conv.bias.dtype) * conv.bias[:primary].repeat_interleave(ghosts)
        fill(new.cheap.bias, shifted)


def nearest_multiples(weight: Tensor, primary: int, ghosts: int) -> Tensor:
    """Return the factors by which primary filters come nearest to the others, shape (primary * ghosts,)."""
    filters = weight.flatten(1)
    bases, others = filters[:primary].repeat_interleave(ghosts, 0), filters[primary:]
    lengths = bases.square().sum(1)
    return (bases * others).sum(1) / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
