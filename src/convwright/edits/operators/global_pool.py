"""``global_pool``: global average pooling before a head that reads a flattened map."""

from __future__ import annotations

import math

from torch import nn

from convwright.edits.operators.convolutions import Init, check_untouched, fill, placed, precise
from convwright.edits.operators.registry import Site, operator, refuse
from convwright.layers.pooled_linear import PooledLinear


@operator("global_pool", source="Network in Network, Lin et al. 2014")
def global_pool(old: nn.Module, site: Site, *, init: Init = "least_squares") -> nn.Module:
    """Mean over the positions of a flattened map, then a linear layer from its channels.

    The new layer takes the flattened map itself, so the network's code stays as it is, and the network becomes
    independent of the resolution, if nothing else fixes it.

    Of a head of several linear layers (VGG: 512 * 7 * 7 -> 4096 -> 4096 -> 1000) the first is replaced. The others
    stay as wide as they were; narrow them by ``Width`` edits, as any other layer.

    Parameters: channels * out, and ``out`` for a bias.

    Args:
        old: a linear layer that reads a flattened map.
        site: where it is, with the shape of that map.
        init: ``"least_squares"``: the old weight summed over the positions, which is the nearest one that treats
            all positions alike, and exact on maps that are constant over the positions; ``"fresh"``: drawn anew.

    Raises:
        EditError: the layer is none, or its input is pooled already.
    """
    if not isinstance(old, nn.Linear):
        refuse("global_pool", site, f"it is a {type(old).__name__}, not a Linear", "Name the first layer of the head")
    check_untouched("global_pool", old, site, nn.Linear)
    channels, positions = _channels_and_positions(old, site)
    new = placed(old, PooledLinear(channels, old.out_features, bias=old.bias is not None, dtype=old.weight.dtype))
    if init == "least_squares":
        fill(new.weight, precise(old.weight).reshape(-1, channels, positions).sum(-1))
        fill(new.bias, old.bias)
    return new


def _channels_and_positions(old: nn.Linear, site: Site) -> tuple[int, int]:
    if not site.map_shape:
        given = "a map (n, channels, height, width) of the network's layers, flattened from the second axis on"
        reason = f"its input is not {given}, or it is pooled already"
        refuse("global_pool", site, reason, "Name the linear layer behind the flatten, if there is one")
    _, channels, *spatial = site.map_shape
    positions = math.prod(spatial)
    if positions == 1:
        refuse("global_pool", site, "its input is pooled already", "There is nothing to do")
    if channels * positions != old.in_features:
        shown = "x".join(map(str, site.map_shape[1:]))
        reason = f"it reads {old.in_features} values, not a map of {shown}"
        refuse("global_pool", site, reason, "Name the layer behind it")
    return channels, positions
