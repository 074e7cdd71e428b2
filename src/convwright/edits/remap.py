"""Where the channels of a network that gets new sizes come from: which old index stands behind each new one.

Shrinking and growing are one operation: every axis gets a list of old indices, with gaps or with repeats. The
lists come from two walks over the graph, before and after: a new channel takes the indices of the old channel that
it continues, wherever the shape operators put them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convwright.architecture.channels import Axis, ChannelGraph, ChannelGroup, Ints
from convwright.architecture.labels import Value, on_axis
from convwright.errors import EditError

# What new channels that begin at zero begin with, as a part of what they copy: far below rounding, yet a ReLU lets
# gradients through, which it does not where its input is zero.
ALMOST_ZERO = 2.0**-46
Rows = npt.NDArray[np.uint64]
Signature = tuple[tuple[tuple[str, int, int], ...], int]


def signature(group: ChannelGroup) -> tuple[tuple[str, int, int], ...]:
    """Return the axes that a group lies on, with multiplicity."""
    return tuple((m.tensor, m.axis, m.per_channel) for m in group.members)


def signatures(graph: ChannelGraph) -> dict[Signature, ChannelGroup]:
    """Return the groups by what identifies each in both walks.

    That is the axes a group lies on, with multiplicity; of several groups on the same axes (parts of one output that
    are frozen for different reasons) also which one it is, in the order of production.
    """
    found: dict[Signature, ChannelGroup] = {}
    seen: Counter[tuple[tuple[str, int, int], ...]] = Counter()
    for group in graph.groups:
        axes = signature(group)
        found[axes, seen[axes]] = group
        seen[axes] += 1
    return found


@dataclass(frozen=True, eq=False)
class Take:
    """The old index behind every new index of one axis, what to divide it by, and which begin at zero.

    It is divided by how often its channel now occurs.
    """

    index: Ints
    copies: npt.NDArray[Any]
    fresh: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def of(self, tensor: Tensor, axis: int, divide: bool = True) -> Tensor:
        """Take the indices along one axis of a tensor, and share what is summed over among the copies."""
        new = tensor.index_select(axis, torch.from_numpy(self.index).to(tensor.device))
        if divide and bool((self.copies != 1).any()) and new.is_floating_point():
            new = new / on_axis(torch.from_numpy(self.copies).to(new.device, new.dtype), axis, new.ndim)
        return new

    def hushed(self, tensor: Tensor, axis: int) -> Tensor:
        """Scale the entries of channels that begin at zero along one axis of a tensor that was taken."""
        factors = torch.from_numpy(np.where(self.fresh, ALMOST_ZERO, 1.0))
        return tensor * on_axis(factors.to(tensor.device, tensor.dtype), axis, tensor.ndim)


@dataclass(frozen=True, eq=False)
class ChannelRemap:
    """Everything that turns the old tensors into the new ones.

    Attributes:
        before: the channel analysis of the network as it is.
        after: the analysis under the new sizes.
        chosen: group name -> the old channel (rank) behind each new one.
        takes: (tensor, axis) -> the indices to take, for axes that change.
        origin: new channel -> the old channel that it continues; -1 where there is none.
        gained: parameters of normalised or standardised weights whose gain is adjusted afterwards: equal numbers of
            copies are not divided there, so that the statistics stay as they are.
        fresh: per new channel, whether it begins at zero: a copy of what its producers give, times `ALMOST_ZERO`.
        silent: the axes of producers on which entries of such channels are scaled so.
    """

    before: ChannelGraph
    after: ChannelGraph
    chosen: Mapping[str, Ints]
    takes: Mapping[Axis, Take] = field(repr=False)
    origin: Ints = field(repr=False)
    gained: frozenset[str] = frozenset()
    fresh: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool), repr=False)
    silent: frozenset[Axis] = frozenset()

    def new_tensor(self, name: str, old: Tensor, divide: bool = True) -> Tensor:
        """Return a tensor's successor.

        Args:
            name: its qualified name.
            old: the tensor, or anything of its shape (a momentum buffer).
            divide: share a repeated channel's weight among its copies, on axes that are summed over.
        """
        new = old
        for axis in range(old.ndim):
            take = self.takes.get((name, axis))
            if take is not None:
                alike = name in self.gained and bool((take.copies == take.copies[0]).all())
                new = take.of(new, axis, divide and not alike)
            if take is not None and (name, axis) in self.silent and new.is_floating_point():
                new = take.hushed(new, axis)
        return new

    def new_shape(self, name: str, old: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a tensor's successor."""
        takes = (self.takes.get((name, axis)) for axis in range(len(old)))
        return tuple(size if take is None else len(take.index) for size, take in zip(old, takes, strict=True))

    def take_of(self, node: str, axis: int, summed: bool) -> Take | None:
        """Return the take along one axis of a value in the graph, such as a computed weight.

        Args:
            node: the value's node.
            axis: the axis.
            summed: whether the axis is summed over, so that copies share.
        """
        values = (graph.follower.values.get(node) for graph in (self.before, self.after))
        planes = [value.plane_at(axis) if isinstance(value, Value) else None for value in values]
        lines = [plane.line() for plane in planes if plane is not None and plane.axes == (axis,)]
        if len(lines) < 2:
            return None
        roles = dict.fromkeys(range(len(self.before.groups)), summed)
        walks = (self.before, self.after)
        return _take(walks, (lines[0], lines[1]), (self.origin, self.fresh), (node, axis), roles)

    def dropped_on(self, value: Value) -> Ints:
        """Return the places along the channel axis of a value whose channels are dropped."""
        line = next((plane.line() for plane in value.planes if len(plane.axes) == 1), None)
        if line is None:
            return np.zeros(0, dtype=np.int64)
        members = members_of(self.before)
        gone = [np.delete(members[name], np.unique(ranks)) for name, ranks in self.chosen.items()]
        found = np.isin(self.before.channels_of(line), np.concatenate(gone)) if gone else np.zeros(0, dtype=bool)
        return np.flatnonzero(found)


def recipe(
    before: ChannelGraph, after: ChannelGraph, chosen: Mapping[str, Ints], appended: Collection[str] = ()
) -> ChannelRemap:
    """Work out the index lists of every axis that changes.

    Args:
        before: the analysis of the network as it is.
        after: the analysis under the new sizes.
        chosen: by group name, the old channel behind each new channel, in order.
        appended: the groups whose further channels begin at zero, behind the old ones.
    """
    origin, fresh = _origin(before, after, chosen, appended)
    summed: dict[Axis, dict[int, bool]] = {}
    for index, group in enumerate(before.groups):
        for member in group.members:
            summed.setdefault((member.tensor, member.axis), {})[index] = member.role == "in"
    takes = {}
    known: dict[tuple[bytes, ...], Take] = {}
    for axis in before.follower.atoms:
        lines = before.axis_labels(axis), after.axis_labels(axis)
        take = _take((before, after), lines, (origin, fresh), axis, summed.get(axis, {}), known)
        if take is not None:
            takes[axis] = _shared(take, (before, after), origin[(origin >= 0) & ~fresh], axis)
    return ChannelRemap(before, after, chosen, takes, origin, fresh=fresh)


def _origin(
    before: ChannelGraph, after: ChannelGraph, chosen: Mapping[str, Ints], appended: Collection[str]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return, for each new channel, the old channel it continues (-1: none), and whether it begins at zero."""
    known = signatures(before)
    members = members_of(before)
    now = members_of(after)
    origin = np.full(len(after.group_of), -1, dtype=np.int64)
    fresh = np.zeros(len(after.group_of), dtype=bool)
    for key, group in signatures(after).items():
        old, ranks = members[known[key].name], chosen.get(known[key].name)
        origin[now[group.name]] = old if ranks is None else old[ranks]
        if known[key].name in appended:
            fresh[now[group.name][len(old) :]] = True
    return origin, fresh


def members_of(graph: ChannelGraph) -> dict[str, Ints]:
    """Return each group's channels in rank order."""
    result = {}
    for index, group in enumerate(graph.groups):
        channels = np.flatnonzero(graph.group_of == index)
        result[group.name] = channels[np.argsort(graph.rank[channels], kind="stable")]
    return result


def _take(
    walks: tuple[ChannelGraph, ChannelGraph],
    lines: tuple[Tensor, Tensor],
    channels: tuple[Ints, npt.NDArray[np.bool_]],
    axis: Axis,
    summed: Mapping[int, bool],
    known: dict[tuple[bytes, ...], Take] | None = None,
) -> Take | None:
    """Return what to take along an axis, given the labels along it in both walks; None where it stays as it is.

    What was found is known for axes with the same channels, such as those of a convolution and its batch norm.
    """
    (before, after), (origin, fresh) = walks, channels
    old, own = before.channels_of(lines[0]), after.channels_of(lines[1])
    if not (before.group_of[old] >= 0).any():
        return None  # kernel axes and the like
    new = origin[own]
    rows = before.rows_of(lines[0]), after.rows_of(lines[1])
    if len(old) == len(new) and (old == new).all() and (rows[0] == rows[1]).all():
        return None
    shared = np.zeros(len(before.groups), dtype=bool)
    shared[[index for index, is_summed in summed.items() if is_summed]] = True
    key = tuple(array.tobytes() for array in (old, own, *rows, shared))
    known = {} if known is None else known
    if key not in known:
        index = _lookup((old, rows[0]), (new, rows[1]), own, axis)
        group = before.group_of[old[index]]
        times = np.bincount(origin[(origin >= 0) & ~fresh], minlength=len(before.group_of))
        known[key] = Take(index, np.where(shared[group] & (group >= 0), times[old[index]], 1), fresh[own] & (own >= 0))
    return known[key]


def _shared(take: Take, walks: tuple[ChannelGraph, ChannelGraph], continued: Ints, axis: Axis) -> Take:
    """Return a take of which entries that a product of activations multiplies by are divided among copies, too."""
    before = walks[0]
    share = before.follower.shares.get(axis)
    if share is None:
        return take
    times = np.bincount(continued, minlength=len(before.group_of))
    mine, by = share.entries.numpy()[take.index], 1.0
    if share.rooted is not None:  # the operator divides by the root of how many there are
        node, along = share.rooted
        old, new = (_value(graph, node).shape[along] for graph in walks)
        by = math.sqrt(old / new)
    copies = times[before.channels_of(before.axis_labels(axis))[take.index]]
    return replace(take, copies=np.where(mine, copies * by, take.copies))


def _value(graph: ChannelGraph, node: str) -> Value:
    found = graph.follower.values[node]
    assert isinstance(found, Value)
    return found


def _lookup(old: tuple[Ints, Rows], new: tuple[Ints, Rows], own: Ints, axis: Axis) -> Ints:
    """Find where on the old axis each new index comes from.

    A channel may lie on an axis several times (behind a flatten, in a grouped convolution): its n-th new place in
    the same parts of grouped operators continues its n-th old place there. `old` and `new` are the channel of each
    index, or the one that it continues, and its parts; `own` is the channel of each new index.
    """
    parts = np.unique(np.concatenate([old[1], new[1]]), return_inverse=True)[1].reshape(-1)
    count = int(parts.max()) + 1
    was, now = old[0] * count + parts[: len(old[0])], new[0] * count + parts[len(old[0]) :]
    if not np.isin(now, was).all():
        where = f"axis {axis[1]} of {axis[0]}"
        if not np.isin(new[0], old[0]).all():
            raise EditError(f"{where} would need channels that it does not have.")
        reason = "a shuffle would send channels into other groups of a grouped operator than now"
        raise EditError(f"with these widths, {reason} ({where}).")
    return places(was, now, own * count + parts[len(old[0]) :])


def places(old: Ints, new: Ints, own: Ints) -> Ints:
    """Find each of some values in a row of old ones; of equal old ones, the n-th for the n-th of equal ``own``."""
    order = np.argsort(old, kind="stable")
    starts = np.searchsorted(old[order], new, side="left")
    counts = np.searchsorted(old[order], new, side="right") - starts
    return order[starts + _occurrence(own) % counts]


def _occurrence(values: Ints) -> Ints:
    """Return, for each entry, how many equal entries stand before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered, side="left")
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(len(values)) - first
    return result
