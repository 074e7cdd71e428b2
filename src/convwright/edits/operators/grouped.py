"""``grouped``: a grouped convolution in place of a dense one."""

from __future__ import annotations

import torch
from torch import nn

from convwright.edits.operators.convolutions import Init, check_divides, convolution_like, dense_convolution, fill
from convwright.edits.operators.registry import Site, operator


@operator("grouped", source="AlexNet, Krizhevsky et al. 2012; ResNeXt, Xie et al. 2017")
def grouped(old: nn.Module, site: Site, *, groups: int = 2, init: Init = "least_squares") -> nn.Module:
    """Grouped convolution of the same kernel.

    Parameters: kernel * in * out / groups, and ``out`` for a bias.

    Args:
        old: a dense convolution.
        site: where it is.
        groups: parts into which inputs and outputs are divided.
        init: ``"least_squares"``: the diagonal blocks of the old weight, which is nearest; ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is not such a convolution, or its channels do not divide.
    """
    conv = dense_convolution("grouped", old, site)
    check_divides("grouped", site, groups, input=conv.in_channels, output=conv.out_channels)
    new = convolution_like(conv, groups=groups)
    if init == "least_squares":
        rows = conv.weight.detach().chunk(groups, 0)
        fill(new.weight, torch.cat([row.chunk(groups, 1)[block] for block, row in enumerate(rows)]))
        fill(new.bias, conv.bias)
    return new
