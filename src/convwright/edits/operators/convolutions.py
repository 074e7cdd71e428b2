"""``dw_separable``, ``ghost`` and ``grouped`` in place of dense convolutions, and what all such operators share.

Which convolutions they accept, and new layers like the old.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convwright.edits.operators.registry import Site, operator, refuse
from convwright.layers.ghost import GhostConv2d

Init = Literal["least_squares", "fresh"]
_Module = TypeVar("_Module", bound=nn.Module)


def two_dimensional(name: str, old: nn.Module, site: Site) -> nn.Conv2d:
    """Return ``old`` if it is an ordinary 2-d convolution whose weights lie in it.

    Raises:
        EditError: it is none.
    """
    kind = type(old).__name__
    if not isinstance(old, nn.Conv2d):
        refuse(name, site, f"it is a {kind}, not a Conv2d", "Name a two-dimensional convolution")
    check_untouched(name, old, site, nn.Conv2d)
    return old


def check_untouched(name: str, old: nn.Module, site: Site, kind: type[nn.Module]) -> None:
    """Check that a module does what torch's class ``kind`` does, with the tensors it holds.

    Raises:
        EditError: it computes its weight, overrides the class, or has hooks that would be lost.
    """
    methods = ("forward", "_conv_forward")
    changed = any(getattr(type(old), each, None) is not getattr(kind, each, None) for each in methods)
    if parametrize.is_parametrized(old) or changed:
        refuse(name, site, f"its class {type(old).__name__} computes more than {kind.__name__}",
               "Bake its weights into a plain one first")  # fmt: skip
    if old._forward_hooks or old._forward_pre_hooks:
        refuse(name, site, "it has hooks, which would be lost", "Remove them first and add them again")


def dense_convolution(name: str, old: nn.Module, site: Site) -> nn.Conv2d:
    """Return ``old`` if it is a 2-d convolution in which every output reads every input.

    Raises:
        EditError: it is none.
    """
    conv = two_dimensional(name, old, site)
    if conv.groups > 1:
        kind = "depthwise" if conv.groups == conv.in_channels else f"grouped already ({conv.groups} groups)"
        refuse(name, site, f"it is {kind}", "Name a convolution with groups=1")
    return conv


def spatial_convolution(name: str, old: nn.Module, site: Site) -> nn.Conv2d:
    """Return ``old`` if it is dense and its kernel is larger than 1x1.

    Raises:
        EditError: it is not.
    """
    conv = dense_convolution(name, old, site)
    if conv.kernel_size == (1, 1):
        refuse(
            name, site, "its kernel is 1x1, so there is nothing to do per channel", "Use 'rpw', 'grouped' or 'ghost'"
        )
    return conv


def check_divides(name: str, site: Site, parts: int, **channels: int) -> None:
    """Check that channel counts divide into equal parts.

    Raises:
        EditError: one does not.
    """
    if parts < 1:
        refuse(name, site, f"{parts} is not a number of parts", "Use at least 1")
    for what, count in channels.items():
        if count % parts:
            possible = [
                str(n) for n in range(2, min(channels.values()) + 1) if not any(c % n for c in channels.values())
            ]
            remedy = f"Possible are {', '.join(possible[:12])}" if possible else "Change the width first"
            refuse(name, site, f"its {count} {what} channels do not divide into {parts}", remedy)


_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def convolution_like(old: nn.Conv2d, **changed: Any) -> nn.Conv2d:
    """Return a convolution with freshly drawn weights and the arguments of ``old``, but those given."""
    kept = {name: getattr(old, name) for name in _ARGUMENTS} | {"bias": old.bias is not None}
    return placed(old, nn.Conv2d(**{**kept, **changed}, dtype=old.weight.dtype))


def placed(old: nn.Conv2d | nn.Linear, new: _Module) -> _Module:
    """Move a new module to the device and type of ``old``; it trains what ``old`` trained."""
    # Drawn on the CPU and moved: the same weights whatever the device.
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    for name, parameter in new.named_parameters():
        source = old.bias if name.endswith("bias") and old.bias is not None else old.weight
        parameter.requires_grad_(source.requires_grad)
    return new


def fill(parameter: Tensor | None, values: Tensor | None) -> None:
    """Write values into a parameter, where both are there."""
    if parameter is not None and values is not None:
        with torch.no_grad():
            parameter.copy_(values.reshape(parameter.shape))


def precise(weight: Tensor) -> Tensor:
    """Return a weight detached, in at least single precision, in which decompositions are defined."""
    detached = weight.detach()
    return detached if detached.dtype in (torch.float32, torch.float64) else detached.float()


def nearest_separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the depthwise and pointwise weights whose product is nearest to a dense weight.

    The product is ``pointwise[o, i] * depthwise[i]``. Each input channel is a problem of its own, the best
    approximation of rank 1 of its filters, a matrix of outputs by kernel positions; the first singular
    vectors solve it (Eckart and Young). Where ``weight`` is zero for an output, so is its solution.

    Args:
        weight: shape (out, in, *kernel).

    Returns:
        Depthwise filters, shape (in, *kernel), and the pointwise weight, shape (out, in).
    """
    per_input = precise(weight).transpose(0, 1).flatten(2)
    left, singular, right = torch.linalg.svd(per_input, full_matrices=False)
    scale, filters, mixing = singular[:, :1].sqrt(), right[:, 0], left[:, :, 0]
    # The sign is free: fixed, so that every machine finds the same.
    peak = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    sign = torch.where(peak < 0, -1.0, 1.0).to(filters.dtype)
    # A filter of length 1 where all weights are zero: with both factors at zero, nothing would ever be learnt.
    length = torch.where(scale > 0, scale, torch.ones_like(scale))
    depthwise = (filters * sign * length).unflatten(1, weight.shape[2:])
    return depthwise, (mixing * sign * scale).T


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
    plain = {"stride": 1, "padding": 0, "dilation": 1, "padding_mode": "zeros"}
    pointwise = convolution_like(conv, kernel_size=1, **plain)
    if init == "least_squares":
        filters, mixing = nearest_separable(conv.weight)
        fill(depthwise.weight, filters)
        fill(pointwise.weight, mixing)
        fill(pointwise.bias, conv.bias)
    return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=pointwise))


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
    filters = precise(conv.weight).flatten(1)
    bases, others = filters[:primary].repeat_interleave(ghosts, 0), filters[primary:]
    lengths = bases.square().sum(1)
    scale = (bases * others).sum(1) / torch.where(lengths > 0, lengths, torch.ones_like(lengths))  # the nearest
    kernel = torch.zeros_like(new.cheap.weight)
    middle = kernel.shape[-1] // 2
    kernel[:, 0, middle, middle] = scale.to(kernel.dtype)
    fill(new.cheap.weight, kernel)
    if conv.bias is not None:
        fill(new.primary.bias, conv.bias[:primary])
        shifted = conv.bias[primary:] - scale.to(conv.bias.dtype) * conv.bias[:primary].repeat_interleave(ghosts)
        fill(new.cheap.bias, shifted)


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
