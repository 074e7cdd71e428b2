"""``dw_rpw``: a depthwise convolution and a rolling pointwise convolution in place of a dense one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from convwright.edits.operators.convolutions import (
    Init,
    convolution_like,
    fill,
    nearest_separable,
    precise,
    spatial_convolution,
)
from convwright.edits.operators.registry import Site, operator
from convwright.edits.operators.rolling import Order, inside_windows, rolling_like

Bias = Literal["like", "depthwise"]


@operator("dw_rpw", source="three-dimensional receptive fields; DSXplore, Wang et al. 2021")
def depthwise_rolling(
    old: nn.Module,
    site: Site,
    *,
    groups: int = 2,
    overlap: float = 0.5,
    order: Order = "interleaved",
    bias: Bias = "like",
    init: Init = "least_squares",
) -> nn.Module:
    """Depthwise convolution of the same kernel, then a rolling pointwise convolution.

    Parameters: kernel * in + in * out / groups, and ``out`` (or ``in``) for a bias; the overlap costs nothing.

    Args:
        old: a dense convolution with a kernel larger than 1x1.
        site: where it is.
        groups: a window holds this part of the channels.
        overlap: the part of a window that the next one reads again.
        order: which output reads which window.
        bias: ``"like"``: the pointwise convolution has one if ``old`` has; ``"depthwise"``: the depthwise one has
            one and the pointwise none, whatever ``old`` has, as in DSXplore's code.
        init: ``"least_squares"``: least squared error of those weights that lie in the windows, and so of all;
            ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution, or its channels do not divide.
    """
    conv = spatial_convolution("dw_rpw", old, site)
    channels, inner = conv.in_channels, bias == "depthwise"
    depthwise = convolution_like(conv, out_channels=channels, groups=channels, bias=inner)
    pointwise = rolling_like("dw_rpw", conv, site, groups, overlap, order, bias=False if inner else None)
    if init == "least_squares":
        filters, mixing = nearest_separable(inside_windows(pointwise, conv.weight))
        fill(depthwise.weight, filters)
        fill(pointwise.weight, mixing.gather(1, pointwise.channels()))
        fill(depthwise.bias, _carried_back(mixing, conv.bias))
        fill(pointwise.bias, conv.bias)
    return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=pointwise))


def _carried_back(mixing: Tensor, bias: Tensor | None) -> Tensor:
    """Return the bias per input channel that a pointwise weight, (out, in), turns into the one nearest to ``bias``."""
    if bias is None:
        return mixing.new_zeros(mixing.shape[1])
    inverse: Tensor = torch.linalg.pinv(mixing)
    return inverse @ precise(bias)
