"""Weights carried from one network to another of the same layers and other widths.

Two ways. `svd_transfer` and `fill_convolutions` do what the published code of CONetV2 (Wang et al. 2021) does between
two trials of its channel search: convolution weights only, shrunk by truncated SVD, grown by copies, so that the
function changes. `widened` keeps the function: the width edits that lead from the one network to the other, as
Net2Wider (Chen et al. 2016) grows and importance shrinks, with norms and classifier carried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from convwright.architecture import Architecture
from convwright.architecture.labels import on_axis
from convwright.edits.edit import Moved, Options
from convwright.edits.plan import Plan, passages
from convwright.edits.remap import signatures
from convwright.edits.summary import summary
from convwright.edits.surgery import optimizer_follows
from convwright.edits.width import Width
from convwright.errors import EditError

_SPREAD = 0.5  # a copy's share lies within this, relatively, of an equal one (two copies: 0.25 to 0.75)


def svd_transfer(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a convolution weight to another number of channels, as the published code of CONetV2 does.

    The weight is seen as a matrix of output channels by everything else. Where it shrinks it becomes the best
    approximation (truncated SVD) whose rank is the smallest of the sizes it shrinks to, cropped to the leading rows
    and columns. Where it grows, a copy of its last channels follows, outputs first, then inputs. Nothing is divided,
    so growing does not keep the function. The published code cannot grow to more than twice the size; here the
    copies then come from the channels repeated cyclically, and up to there the results are the same.

    Args:
        weight: (outputs, inputs, ...) with any kernel axes, or a matrix (outputs, inputs).
        shape: The shape to come to; the kernel axes must be those of `weight`.

    Returns:
        A new tensor of `shape`, of the dtype and on the device of `weight`.

    Raises:
        EditError: The shapes differ in more than the first two axes, or the weight is not finite.
    """
    new = tuple(int(size) for size in shape)
    if weight.ndim < 2 or len(new) != weight.ndim or new[2:] != tuple(weight.shape[2:]) or min(new) < 1:
        raise EditError(
            f"a weight of shape {tuple(weight.shape)} cannot be carried to {new}: only the first two axes may differ."
        )
    if not bool(torch.isfinite(weight).all()):
        raise EditError("the weight has values that are not finite.")
    old = weight.detach()
    shrunk = _approximated(old, new)[: new[0], : new[1]]
    return _with_copies(_with_copies(shrunk, 0, new[0]), 1, new[1]).clone()


def _approximated(weight: Tensor, new: tuple[int, ...]) -> Tensor:
    """Return the weight at the rank that the sizes it shrinks to allow; itself where that is no less."""
    matrix = weight.reshape(weight.shape[0], -1)
    sizes = (new[0], new[1] * (matrix.shape[1] // weight.shape[1]))
    rank = min((size for size, before in zip(sizes, matrix.shape, strict=True) if size < before), default=None)
    if rank is None or rank >= min(matrix.shape):
        return weight
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    low: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return low.reshape(weight.shape).to(weight.dtype)


def _with_copies(weight: Tensor, axis: int, size: int) -> Tensor:
    """Follow the channels of an axis by copies of them, up to a size; itself where there are enough.

    The copies are the end of the channels repeated for ever: up to twice the size, the last channels, as published.
    """
    old = weight.shape[axis]
    if size <= old:
        return weight
    own = torch.arange(old, device=weight.device)
    copies = own.repeat(size // old)[old - size :]
    return weight.index_select(axis, torch.cat([own, copies]))


def fill_convolutions(source: nn.Module, target: nn.Module) -> tuple[str, ...]:
    """Fill the convolution weights of a network from another of the same layers by `svd_transfer`, in place.

    Biases, norms and the classifier stay as they are in `target`: the published code carries none of them.

    Args:
        source: Where the weights come from; unchanged.
        target: Takes them; its widths may differ.

    Returns:
        The names of the parameters that were filled.

    Raises:
        EditError: A convolution of `target` is missing in `source`, has another kernel or is not finite there; names
            it. The weights before it are filled already.
    """
    old = convolution_weights(source)
    wanted = convolution_weights(target)
    for name, weight in wanted.items():
        if name not in old:
            raise EditError(f"{name}: the network that the weights come from has no such convolution.")
        try:
            new = svd_transfer(old[name], weight.shape)
        except EditError as error:
            raise EditError(f"{name}: {error}") from error
        with torch.no_grad():
            weight.copy_(new)
    return tuple(wanted)


def convolution_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the four-dimensional parameters that are convolution kernels, by name, shared ones once.

    Four-dimensional parameters of other modules count, too (layers of one's own), unless all but one of their axes
    have size 1: that is a scale.
    """
    modules = dict(model.named_modules())
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 4
        and (isinstance(modules[name.rpartition(".")[0]], _ConvNd) or sum(size > 1 for size in parameter.shape) > 1)
    }


def check_widths_only(before: Plan, after: Plan) -> None:
    """Refuse two plans from one network that differ in more than widths.

    Raises:
        EditError: Names the first edit that only one of them has, by its number.
    """
    if (before.model, before.params, before.macs) != (after.model, after.params, after.macs):
        raise EditError(f"one plan is for {before.model}, the other for {after.model}.")
    ours, theirs = (
        [(n, edit) for n, edit in enumerate(plan.edits, start=1) if not isinstance(edit, Width)]
        for plan in (before, after)
    )
    for mine, other in zip_longest(ours, theirs):
        if mine is None or other is None or mine[1] != other[1]:
            place, (number, edit) = ("later", other) if other is not None else ("earlier", mine or ours[0])
            raise EditError(
                f"edit {number} of the {place} plan ({summary(edit)}) is no change of width, and is not the same in "
                "the other plan."
            )


def width_edits(before: Architecture, after: Architecture) -> tuple[Width, ...]:
    """Return the edits that give a network the widths of another of the same layers.

    Groups are found again by the parameter axes that they lie on: their names may tell positions that moved.

    Args:
        before: The network to edit.
        after: The network whose widths it gets.

    Raises:
        EditError: The networks differ in more than widths, or a group that differs is frozen.
    """
    theirs = signatures(after.channels)
    edits = []
    for key, group in signatures(before.channels).items():
        other = theirs.get(key)
        if other is None:
            raise EditError(
                f"{group.name}: its channels lie on other layers in the other network; the two differ in more than "
                "widths (or one of the widths is 1, which carries no channels)."
            )
        if other.size != group.size and group.frozen:
            raise EditError(f"{group.name} cannot go from {group.size} to {other.size} channels: {group.reason}.")
        if other.size != group.size:
            edits.append(Width(group.name, other.size))
    return tuple(edits)


def widened(
    parent: Architecture, like: Architecture, *, seed: int = 0, importance: Any = "l2", optimizer: Any = None
) -> Architecture:
    """Return a network with its weights kept and the widths of another.

    Groups that shrink keep their most important channels. Groups that grow repeat channels, and what their consumers
    took from one is split among its copies in random shares that sum to one: the function is kept, and the copies get
    different gradients (with equal shares they would stay equal for ever, and training could make nothing of them).

    Args:
        parent: The network with the weights; unchanged.
        like: A network of the same layers and other widths; its weights do not matter.
        seed: Of the shares.
        importance: Which channels stay, as for `Architecture.apply`.
        optimizer: An optimizer over the parent's parameters; the new ones and their state take their place in it.

    Raises:
        EditError: The networks differ in more than widths, or an edit is refused.
    """
    edits = width_edits(parent, like)
    if not edits:
        return parent
    (passage,) = passages(parent, edits, Options(importance=importance, verify=False))
    moved = passage.outcome.moved
    _share_unevenly(parent, moved, seed)
    if optimizer is not None:
        optimizer_follows(optimizer, passage.outcome.model, moved)
    _check_shapes(passage.outcome.model, like.model)
    return passage.after


def _check_shapes(found: nn.Module, wanted: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in found.state_dict().items()}
    for name, tensor in wanted.state_dict().items():
        if shapes.get(name) != tuple(tensor.shape):
            raise EditError(
                f"{name} is {shapes.get(name)} after the width edits and should be {tuple(tensor.shape)}: the two "
                "networks differ in more than widths."
            )


def _share_unevenly(parent: Architecture, moved: Mapping[int, Moved], seed: int) -> None:
    """Change the equal shares of a repeated channel to random ones, in place, where weights are summed over."""
    generator = torch.Generator().manual_seed(seed)
    # A weight that is computed (standardised, normalised) is not linear in its parameter: left alone.
    direct = {name for layer in parent.layers if layer.kind in ("conv", "linear") for name in layer.parameters}
    summed = {(m.tensor, m.axis) for group in parent.groups for m in group.members if m.role == "in"}
    parameters = dict(parent.model.named_parameters(remove_duplicate=False))
    done: set[tuple[int, int]] = set()
    for name, axis in sorted(summed):
        old = parameters.get(name)
        if name in direct and old is not None and id(old) in moved and (id(old), axis) not in done:
            done.add((id(old), axis))
            _share(old.detach(), moved[id(old)], axis, generator)


def _share(old: Tensor, successor: Moved, axis: int, generator: torch.Generator) -> None:
    new = successor.new.detach()
    size = old.shape[axis]
    own = on_axis(torch.arange(size, device=old.device, dtype=torch.int32), axis, old.ndim)
    places = successor.take(own.expand(old.shape))
    behind = places.movedim(axis, 0).flatten(1)[:, 0].long()  # the old index behind each new one
    copies = torch.bincount(behind, minlength=size)
    # Only where the edit shared a weight equally among copies do uneven shares keep the sum.
    rounding = max(1e-5, 4 * torch.finfo(new.dtype).eps)
    whole = new * on_axis(copies[behind], axis, new.ndim).to(new.dtype)
    if int(copies.max()) < 2 or not torch.allclose(whole, successor.take(old), rtol=rounding):
        return
    exact = torch.float64 if new.dtype == torch.float64 else torch.float32  # also for weights of half precision
    drawn = (torch.rand(new.shape, generator=generator, dtype=exact) * 2 - 1).to(old.device)
    sums = torch.zeros([*new.shape[:axis], size, *new.shape[axis + 1 :]], dtype=exact, device=old.device)
    means = sums.index_add_(axis, behind, drawn) / on_axis(copies.clamp_min(1), axis, new.ndim)
    shares = 1 + _SPREAD * (drawn - means.index_select(axis, behind))
    new.copy_(new * shares)
