"""``rpw`` and ``dw_rpw``: rolling pointwise convolutions in place of 1x1 convolutions, and behind depthwise ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from convwright.edits.operators.convolutions import (
    Init,
    check_divides,
    convolution_like,
    dense_convolution,
    fill,
    nearest_separable,
    placed,
    precise,
    spatial_convolution,
)
from convwright.edits.operators.registry import Site, operator, refuse
from convwright.layers.rolling_pointwise import RollingPointwiseConv2d

Order = Literal["interleaved", "blocked"]


@operator("rpw", source="three-dimensional receptive fields; DSXplore, Wang et al. 2021")
def rolling(
    old: nn.Module,
    site: Site,
    *,
    groups: int = 2,
    overlap: float = 0.5,
    order: Order = "interleaved",
    init: Init = "least_squares",
) -> nn.Module:
    """Rolling pointwise convolution in place of a 1x1 convolution.

    Parameters: in * out / groups, and ``out`` for a bias; the overlap costs nothing.

    Args:
        old: a dense 1x1 convolution.
        site: where it is.
        groups: a window holds this part of the channels.
        overlap: the part of a window that the next one reads again.
        order: which output reads which window.
        init: ``"least_squares"``: the old weights inside the windows, which is nearest; ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution, or its channels do not divide.
    """
    conv = dense_convolution("rpw", old, site)
    if conv.kernel_size != (1, 1):
        kernel = "x".join(map(str, conv.kernel_size))
        refuse("rpw", site, f"its kernel is {kernel}, not 1x1", "Use 'dw_rpw' for larger kernels")
    if conv.padding not in ((0, 0), "valid", "same"):
        refuse("rpw", site, f"it pads by {conv.padding}", "Name a 1x1 convolution without padding")
    new = rolling_like("rpw", conv, site, groups, overlap, order, stride=conv.stride)
    if init == "least_squares":
        fill(new.weight, conv.weight.detach().flatten(1).gather(1, new.channels()))
        fill(new.bias, conv.bias)
    return new


def rolling_like(
    name: str,
    old: nn.Conv2d,
    site: Site,
    groups: int,
    overlap: float,
    order: Order,
    stride: tuple[int, ...] = (1, 1),
    bias: bool | None = None,
) -> RollingPointwiseConv2d:
    """Return a rolling pointwise convolution between the channels of ``old``, with a bias if it has one or as told.

    Raises:
        EditError: the channels do not divide.
        ValueError: the overlap is out of range, or the blocked order does not fit.
    """
    check_divides(name, site, groups, input=old.in_channels)
    new = RollingPointwiseConv2d(
        old.in_channels,
        old.out_channels,
        groups,
        overlap,
        order,
        bias=old.bias is not None if bias is None else bias,
        stride=(stride[0], stride[1]),
        dtype=old.weight.dtype,
    )
    return placed(old, new)


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
        weight = conv.weight.detach()
        read = weight.new_zeros(weight.shape[:2]).scatter_(1, pointwise.channels().to(weight.device), 1.0)
        filters, mixing = nearest_separable(weight * read[:, :, None, None])  # nothing outside of the windows
        fill(depthwise.weight, filters)
        fill(pointwise.weight, mixing.gather(1, pointwise.channels()))
        # The bias per input channel that the pointwise weight turns into the one nearest to the old bias.
        none = mixing.new_zeros(len(mixing))
        fill(depthwise.bias, torch.linalg.pinv(mixing) @ (none if conv.bias is None else precise(conv.bias)))
        fill(pointwise.bias, conv.bias)
    return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=pointwise))
