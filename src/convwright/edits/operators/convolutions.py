"""What the operators that replace convolutions share: which ones they accept, and new ones like the old."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convwright.edits.operators.registry import Site, refuse

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


def pointwise_like(old: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution to the outputs of ``old``, with a bias if it has one."""
    new = nn.Conv2d(in_channels, old.out_channels, 1, bias=old.bias is not None, dtype=old.weight.dtype)
    return placed(old, new)


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
