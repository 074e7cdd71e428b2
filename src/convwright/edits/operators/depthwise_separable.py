"""``dw_separable``: a depthwise convolution and a 1x1 convolution in place of a dense one."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from convwright.edits.operators.convolutions import (
    Init,
    convolution_like,
    fill,
    nearest_separable,
    pointwise_like,
    spatial_convolution,
)
from convwright.edits.operators.registry import Site, operator


@operator("dw_separable", source="Sifre 2014; MobileNet, Howard et al. 2017")
def depthwise_separable(old: nn.Module, site: Site, *, init: Init = "least_squares") -> nn.Module:
    """Depthwise convolution of the same kernel, then a 1x1 convolution.

    There is neither norm nor activation between the two, so that the product of the two weights can be the
    nearest one to the old weight.

    Parameters: kernel * in + in * out, and ``out`` for a bias.

    Args:
        old: a dense convolution with a kernel larger than 1x1.
        site: where it is.
        init: ``"least_squares"``: least squared error of the weight; ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution.
    """
    conv = spatial_convolution("dw_separable", old, site)
    channels = conv.in_channels
    depthwise = convolution_like(conv, out_channels=channels, groups=channels, bias=False)
    pointwise = pointwise_like(conv, channels)
    if init == "least_squares":
        filters, mixing = nearest_separable(conv.weight)
        fill(depthwise.weight, filters)
        fill(pointwise.weight, mixing)
        fill(pointwise.bias, conv.bias)
    return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=pointwise))
