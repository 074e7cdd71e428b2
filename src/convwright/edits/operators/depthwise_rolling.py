"""``dw_rpw``: a depthwise convolution and a rolling pointwise convolution in place of a dense one."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from convwright.edits.operators.convolutions import (
    Init,
    convolution_like,
    fill,
    nearest_separable,
    spatial_convolution,
)
from convwright.edits.operators.registry import Site, operator
from convwright.edits.operators.rolling import Order, inside_windows, rolling_like
from convwright.layers.rolling_pointwise import RollingPointwiseConv2d


@operator("dw_rpw", source="three-dimensional receptive fields; DSXplore, Wang et al. 2021")
def depthwise_rolling(
    old: nn.Module,
    site: Site,
    *,
    groups: int = 2,
    overlap: float = 0.5,
    order: Order = "interleaved",
    init: Init = "least_squares",
) -> nn.Module:
    """Depthwise convolution of the same kernel, then a rolling pointwise convolution.

    Parameters: kernel * in + in * out / groups, and ``out`` for a bias; the overlap costs nothing.

    Args:
        old: a dense convolution with a kernel larger than 1x1.
        site: where it is.
        groups: a window holds this part of the channels.
        overlap: the part of a window that the next one reads again.
        order: which output reads which window.
        init: ``"least_squares"``: least squared error of those weights that lie in the windows, and so of all;
            ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution, or its channels do not divide.
    """
    conv = spatial_convolution("dw_rpw", old, site)
    channels = conv.in_channels
    depthwise = convolution_like(conv, out_channels=channels, groups=channels, bias=False)
    pointwise: RollingPointwiseConv2d = rolling_like("dw_rpw", conv, site, groups, overlap, order)
    if init == "least_squares":
        filters, mixing = nearest_separable(inside_windows(pointwise, conv.weight))
        fill(depthwise.weight, filters)
        fill(pointwise.weight, mixing.gather(1, pointwise.channels()))
        fill(pointwise.bias, conv.bias)
    return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=pointwise))
