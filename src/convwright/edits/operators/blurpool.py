"""``blurpool``: sub-sampling behind a blur in place of a strided convolution or pool (anti-aliasing)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

from torch import nn

from convwright.edits.operators.convolutions import check_untouched, two_dimensional
from convwright.edits.operators.registry import Site, operator, refuse

Padding = Literal["constant", "reflect", "replicate"]
BlurOrder = Literal["after", "before"]
_SMALLEST, _LARGEST = 2, 7


@operator("blurpool", source="Zhang 2019")
def blurpool(
    old: nn.Module, site: Site, *, kernel: int = 3, padding: Padding = "constant", order: BlurOrder = "after"
) -> nn.Module:
    """Same layer with half the stride (1 for 2), then a fixed binomial blur with stride 2.

    No parameters are added, all weights are kept; the layer itself runs on four times as many positions. With
    ``order="before"`` a convolution keeps its stride and reads a blurred map, which costs the blur alone.

    Args:
        old: a Conv2d, MaxPool2d or AvgPool2d with the same even stride along both axes; with ``order="before"`` a
            Conv2d with any stride above 1.
        site: where it is.
        kernel: size of the blur, from 2 to 7: rows [1, 1], [1, 2, 1], [1, 3, 3, 1], ... One of even size has one
            more position on its right and lower side.
        padding: what lies beyond the border: zeros (``"constant"``), or the map reflected or replicated.
        order: whether the blur stands behind the layer (Zhang) or before it (cheap; Composer's ``blur_first``).

    Raises:
        EditError: the layer is none of these, or the kernel is out of range.
    """
    if not _SMALLEST <= kernel <= _LARGEST:
        refuse("blurpool", site, f"there is no blur of {kernel}x{kernel}", f"Use kernel={_SMALLEST} to {_LARGEST}")
    if order == "before":
        _check_strided(old, site)
        blur = _blur(old, site, site.input_shape[1], kernel, 1, padding)
        return nn.Sequential(OrderedDict[str, nn.Module](blur=blur, strided=copy.deepcopy(old)))
    stride = _stride(old, site)
    dense = copy.deepcopy(old)
    setattr(dense, "stride", (stride // 2, stride // 2))  # noqa: B010 - three classes, of which only we know
    blur = _blur(old, site, site.output_shape[1], kernel, 2, padding)
    return nn.Sequential(OrderedDict[str, nn.Module](dense=dense, blur=blur))


def _blur(old: nn.Module, site: Site, channels: int, kernel: int, stride: int, padding: Padding) -> nn.Module:
    """Return a blur that keeps the size, or makes ceil(size / 2) of it: as many positions as the strided layer had."""
    # Here, not above: importing timm takes longer than everything else.
    from timm.layers.blur_pool import BlurPool2d

    weight = getattr(old, "weight", None)
    device, dtype = (site.device, site.dtype) if weight is None else (weight.device, weight.dtype)
    # `channels` gives a filter per channel, whose axis a width edit finds.
    blur = BlurPool2d(channels, filt_size=kernel, stride=stride, pad_mode=padding)
    # kernel - 1 in all; timm's own padding is the same for odd kernels, and one too many for even ones.
    blur.padding = [(kernel - 1) // 2, kernel // 2] * 2
    return blur.to(device=device, dtype=dtype)


def _check_strided(old: nn.Module, site: Site) -> None:
    if isinstance(old, nn.MaxPool2d | nn.AvgPool2d):
        refuse(
            "blurpool", site, f"a blur before a {type(old).__name__} smooths nothing that it makes",
            "Use order='after' for pools",
        )  # fmt: skip
    conv = two_dimensional("blurpool", old, site)
    if max(conv.stride) < 2:
        refuse("blurpool", site, "its stride is 1x1", "Name a layer with a larger stride")


def _stride(old: nn.Module, site: Site) -> int:
    if isinstance(old, nn.MaxPool2d | nn.AvgPool2d):
        check_untouched("blurpool", old, site, nn.MaxPool2d if isinstance(old, nn.MaxPool2d) else nn.AvgPool2d)
        if getattr(old, "return_indices", False):
            refuse("blurpool", site, "its indices would be those of the dense maximum", "Name another pool")
    elif isinstance(old, nn.Conv2d):
        two_dimensional("blurpool", old, site)
    else:
        kind = type(old).__name__
        refuse("blurpool", site, f"it is a {kind}", "Name a strided Conv2d, MaxPool2d or AvgPool2d")
    stride = old.stride
    rows, columns = (stride, stride) if isinstance(stride, int) else stride
    if rows != columns or rows % 2:
        refuse(
            "blurpool", site, f"its stride is {rows}x{columns}", "Name a layer whose stride is 2, or 4, along both axes"
        )
    return int(rows)
