"""``blurpool``: sub-sampling behind a blur in place of a strided convolution or pool (anti-aliasing)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

from torch import nn

from convwright.edits.operators.convolutions import check_untouched, two_dimensional
from convwright.edits.operators.registry import Site, operator, refuse

Padding = Literal["constant", "reflect", "replicate"]


@operator("blurpool", source="Zhang 2019")
def blurpool(old: nn.Module, site: Site, *, kernel: int = 3, padding: Padding = "constant") -> nn.Module:
    """Same layer with half the stride (1 for 2), then a fixed binomial blur with stride 2.

    No parameters are added, all weights are kept; the layer itself runs on four times as many positions.

    Args:
        old: a Conv2d, MaxPool2d or AvgPool2d with the same even stride along both axes.
        site: where it is.
        kernel: size of the blur, odd.
        padding: what lies beyond the border: zeros (``"constant"``), or the map reflected or replicated.

    Raises:
        EditError: the layer is none of these.
    """
    stride = _stride(old, site)
    if kernel < 3 or kernel % 2 == 0:
        refuse("blurpool", site, f"a blur of {kernel}x{kernel} has no middle", "Use kernel=3 or kernel=5")
    dense = copy.deepcopy(old)
    setattr(dense, "stride", (stride // 2, stride // 2))  # noqa: B010 - three classes, of which only we know
    # Here, not above: importing timm takes longer than everything else.
    from timm.layers.blur_pool import BlurPool2d

    weight = getattr(old, "weight", None)
    device, dtype = (site.device, site.dtype) if weight is None else (weight.device, weight.dtype)
    # `channels` gives a filter per channel, whose axis a width edit finds. timm's padding of kernel - 1 in all makes
    # ceil(size / 2) of a map for odd kernels and stride 2: as many positions as the strided layer had.
    blur = BlurPool2d(site.output_shape[1], filt_size=kernel, stride=2, pad_mode=padding)
    return nn.Sequential(OrderedDict[str, nn.Module](dense=dense, blur=blur.to(device=device, dtype=dtype)))


def _stride(old: nn.Module, site: Site) -> int:
    """Return the stride of a layer that can be blurred.

    Raises:
        EditError: it cannot.
    """
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
