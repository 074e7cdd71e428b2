"""``squeeze_excite``: squeeze-and-excitation behind a convolution or batch norm, without a change at insertion."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from convwright.edits.operators.convolutions import check_untouched, two_dimensional
from convwright.edits.operators.registry import Site, operator, refuse

Gate = Literal["sigmoid", "hard_sigmoid"]
_GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}


@operator("squeeze_excite", source="Hu et al. 2018", approximate=False)
def squeeze_excite(
    old: nn.Module,
    site: Site,
    *,
    ratio: float = 0.25,
    gate: Gate = "sigmoid",
    latent_channels: int = 0,
    bias: bool = True,
) -> nn.Module:
    """Same layer, then a gate per channel computed from the channels' means.

    The gate's last layer starts at zero, so the gate starts at 1/2 for every input, with or without biases. The
    layer's weight and bias are doubled, which is exact in floating point: the output is bit for bit the old one.

    Parameters, with ``s = max(1, round(ratio * out))`` or ``latent_channels``: 2 * s * out more, and s + out for the
    biases. MosaicML Composer's variant is ``bias=False``.

    Args:
        old: a Conv2d, or a BatchNorm2d with scale and shift.
        site: where it is.
        ratio: channels of the bottleneck as a part of the layer's, in (0, 1].
        gate: its last activation.
        latent_channels: channels of the bottleneck as a number; 0: by the ratio.
        bias: whether the gate's two layers have biases.

    Raises:
        EditError: the layer is neither, or the ratio or the number is out of range.
    """
    scaled = _doubled(old, site)
    if not 0 < ratio <= 1:
        refuse("squeeze_excite", site, f"the ratio is {ratio}", "Use more than 0 and at most 1")
    if latent_channels < 0:
        refuse("squeeze_excite", site, f"{latent_channels} is no number of channels", "Use 1 or more, or 0 for a ratio")
    # Here, not above: importing torchvision takes long.
    from torchvision.ops import SqueezeExcitation

    channels = site.output_shape[1]
    squeezed = latent_channels or max(1, round(ratio * channels))
    excite = SqueezeExcitation(channels, squeezed, scale_activation=_GATES[gate])
    nn.init.zeros_(excite.fc2.weight)
    nn.init.zeros_(excite.fc2.bias)
    if not bias:
        excite.fc1.bias = excite.fc2.bias = None
    weight = old.weight
    assert isinstance(weight, Tensor)
    excite = excite.to(device=weight.device, dtype=weight.dtype)
    return nn.Sequential(OrderedDict[str, nn.Module](layer=scaled, excite=excite))


def _doubled(old: nn.Module, site: Site) -> nn.Module:
    """Return a copy with twice the output; refuse a layer that has no scale."""
    if isinstance(old, nn.BatchNorm2d):
        check_untouched("squeeze_excite", old, site, nn.BatchNorm2d)
        if not old.affine:
            refuse(
                "squeeze_excite", site, "it has no scale that could make up for the gate", "Name the layer before it"
            )
    elif isinstance(old, nn.Conv2d):
        two_dimensional("squeeze_excite", old, site)
    else:
        refuse("squeeze_excite", site, f"it is a {type(old).__name__}", "Name a Conv2d or BatchNorm2d")
    new = copy.deepcopy(old)
    with torch.no_grad():
        new.weight.mul_(2.0)
        if new.bias is not None:
            new.bias.mul_(2.0)
    return new
