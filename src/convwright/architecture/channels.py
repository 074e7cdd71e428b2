"""From labels to channel groups: which channels live and die together.

Connected components of tied labels are *channels*: sets of indices, on many parameter axes, that can only be
removed or repeated together. Channels that touch the same axes form one ``ChannelGroup``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from convwright.architecture.capture.graph import Capture
from convwright.architecture.follow import Follower
from convwright.architecture.labels import NEUTRAL, Ledger, Plane, Value
from convwright.errors import EditError, did_you_mean

Ints = npt.NDArray[np.int64]
Axis = tuple[str, int]
Tables = list[Ints]  # one (axes, 2) array per signature: axis, entries on it


@dataclass(frozen=True)
class Member:
    """One parameter or buffer axis on which a group's channels lie.

    Attributes:
        tensor: qualified name of the parameter or buffer.
        axis: which of its axes.
        role: ``"out"`` (a layer produces the channels here), ``"in"`` (a layer sums over them here) or
            ``"along"`` (one entry per channel: norms, depthwise kernels, biases, scales).
        per_channel: indices per channel on this axis (49 behind a flatten of 7x7 maps).
    """

    tensor: str
    axis: int
    role: str
    per_channel: int


@dataclass(frozen=True)
class WidthBounds:
    """Widths that a user's constraints allow a group to change to.

    Attributes:
        least: the smallest, in channels.
        most: the largest.
        divisor: what they are multiples of; 0: nothing is said.
        why: what bounds them, for messages.
    """

    least: int
    most: int
    divisor: int = 0
    why: str = ""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be removed or repeated one by one, each across all its members.

    Attributes:
        name: the layer that produces them first; with ``[start:stop]`` when it is a part of that
            layer's output.
        size: number of channels, as counted in that layer's output.
        step: sizes must be multiples of this (the group count where a grouped convolution or a
            group norm ties groups to equal size).
        frozen: the size cannot change.
        reason: why it is frozen, in words; empty when it is free.
        members: the parameter axes on which the channels lie.
        tied: names of the groups whose sizes must change in proportion, because equal parts are cut
            from a tensor that holds them all.
        across: operators that compute a statistic across the channels: another size may move it.
        bounds: widths that the user's constraints allow; None where there are no constraints.
    """

    name: str
    size: int
    step: int = 1
    frozen: bool = False
    reason: str = ""
    members: tuple[Member, ...] = ()
    tied: tuple[str, ...] = ()
    across: tuple[str, ...] = ()
    bounds: WidthBounds | None = None

    @property
    def units(self) -> int:
        """Number of independent channels: ``size / step``."""
        return self.size // self.step

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules that own the members, in order, each once."""
        return tuple(dict.fromkeys(m.tensor.rpartition(".")[0] for m in self.members))


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The channel analysis of one captured network (or of the same network under new sizes).

    Attributes:
        follower: the walk that it was made from.
        component: atom -> channel (connected component).
        group_of: channel -> index into ``groups``, or -1 where labels are no channels.
        rank: channel -> its place within its group.
        groups: the channel groups, in the order in which layers produce them.
    """

    follower: Follower = field(repr=False)
    component: Ints = field(repr=False)
    group_of: Ints = field(repr=False)
    rank: Ints = field(repr=False)
    groups: tuple[ChannelGroup, ...] = ()

    @cached_property
    def index(self) -> dict[str, int]:
        """Group name -> its place in ``groups``."""
        return {group.name: i for i, group in enumerate(self.groups)}

    @cached_property
    def units(self) -> Ints:
        """Number of channels (components) of each group."""
        return np.array([group.units for group in self.groups], dtype=np.int64)

    def group(self, name: str) -> ChannelGroup:
        """Return a group by its exact name."""
        if name not in self.index:
            raise EditError(f"no channel group is called {name!r}.{did_you_mean(name, self.index)}")
        return self.groups[self.index[name]]

    def with_frozen(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """Return the same analysis with further groups frozen, for these reasons."""
        if not reasons:
            return self
        groups = tuple(
            replace(g, frozen=True, reason=reasons[g.name]) if g.name in reasons and not g.frozen else g
            for g in self.groups
        )
        return replace(self, groups=groups)

    def channels_of(self, labels: Tensor) -> Ints:
        """Return the channel of each label; -1 where there is none."""
        found: Ints = self._channels[labels.reshape(-1).numpy()]
        return found

    def rows_of(self, labels: Tensor) -> npt.NDArray[np.uint64]:
        """Return in which parts of grouped operators each label lies, as one number: the same for the same parts.

        A channel of a grouped convolution has an index in each of its groups; a shuffle may mix their order.
        """
        found: npt.NDArray[np.uint64] = self._rows[labels.reshape(-1).numpy()]
        return found

    @cached_property
    def _channels(self) -> Ints:
        """The channel of each label, that of NEUTRAL at the end."""
        return np.append(self.component, -1)

    @cached_property
    def places(self) -> Ints:
        """The group of each label, the number of groups where there is none; the last entry is that of NEUTRAL."""
        group = np.append(self.group_of, -1)[self._channels]
        return np.where(group < 0, len(self.groups), group)

    @cached_property
    def threads(self) -> Ints:
        """The thread of each label: the labels that are the same channel at the same place of grouped operators."""
        return _tied(self.follower.ledger, self.follower.ledger.ties)

    @cached_property
    def _rows(self) -> npt.NDArray[np.uint64]:
        ledger = self.follower.ledger
        found = np.zeros(max(ledger.count, 1), dtype=np.uint64)
        if not ledger.rows:
            return found
        thread = self.threads
        tables = [table.numpy() for table in ledger.rows]
        place = np.concatenate([np.repeat(np.arange(len(t)) + (i << 32), t[0].size) for i, t in enumerate(tables)])
        atoms = np.concatenate([table.reshape(-1) for table in tables])
        pairs = np.unique(np.stack([thread[atoms], place])[:, atoms != NEUTRAL], axis=1)
        mixed = pairs[1].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64: sums of it are distinct
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        total = np.zeros(int(thread.max()) + 1, dtype=np.uint64)
        np.add.at(total, pairs[0], mixed ^ (mixed >> np.uint64(31)))
        rows: npt.NDArray[np.uint64] = total[thread]
        return rows

    def count(self, labels: Tensor) -> Ints:
        """Count, per group, the labels that belong to it; the last entry counts the others."""
        return np.bincount(self.places[labels.reshape(-1).numpy()], minlength=len(self.groups) + 1)

    def axis_labels(self, axis: Axis) -> Tensor:
        """Return the labels along one parameter axis."""
        return self.follower.atoms[axis]

    def groups_on(self, labels: Tensor) -> tuple[str, ...]:
        """Return the names of the groups that these labels belong to, in order of appearance."""
        channels = self.channels_of(labels)
        found = self.group_of[channels[channels >= 0]]
        return tuple(self.groups[g].name for g in dict.fromkeys(found.tolist()) if g >= 0)


def analyse(capture: Capture) -> ChannelGraph:
    """Find the channel groups of a captured network."""
    return _Builder(Follower(capture).run()).build()


@dataclass(frozen=True, eq=False)
class Resized:
    """A guide for the second walk: the first walk's analysis with new channel counts.

    Attributes:
        old: the analysis of the network as it is.
        units: the wanted number of channels of each group.
    """

    old: ChannelGraph
    units: Ints

    def new_length(self, labels: Tensor) -> int:
        """Return how long a run of old labels becomes: each group's share in proportion."""
        counts = self.old.count(labels)
        shares = counts[:-1] * self.units / np.maximum(self.old.units, 1)
        return int(np.rint(shares.sum())) + int(counts[-1])

    def channel_axes(self, plane: Plane) -> tuple[int, ...]:
        """Return the axes of an old plane along which channels vary."""
        channels = self.old.channels_of(plane.labels).reshape(tuple(plane.labels.shape))
        return tuple(a for a in plane.axes if bool((channels != np.take(channels, [0], axis=a)).any()))

    def value(self, node: str) -> Value:
        """Return what the first walk found for a node with one value."""
        found = self.old.follower.values[node]
        assert isinstance(found, Value)
        return found


def resize(old: ChannelGraph, units: Ints) -> ChannelGraph:
    """Analyse the same graph with ``units[g]`` channels in group ``g``.

    Raises:
        ResizeError: if the graph cannot be followed with these sizes.
    """
    return _Builder(Follower(old.follower.capture, Resized(old, units)).run()).build()


@dataclass(frozen=True, eq=False)
class Origins:
    """The origin of every parameter and buffer of an edited network in the network as it was read (its plan empty).

    Attributes:
        entries: (tensor, axis) -> for each entry of the axis its index on that axis of the original, -1 where it has
            none (the rim of a larger kernel); axes that are as they were are left out.
        names: tensor -> its name in the original, where that is another; empty for tensors that an edit brought in.
    """

    entries: Mapping[Axis, Ints] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------ building


class _Builder:
    """Components, then signatures, then groups."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.ledger = follower.ledger
        self.count = follower.ledger.count
        self.axes = list(follower.atoms)
        self.atoms = [follower.atoms[axis].numpy() for axis in self.axes]

    def build(self) -> ChannelGraph:
        self.component = _tied(self.ledger, [*self.ledger.ties, *((table, table[:1]) for table in self.ledger.rows)])
        self.channels = int(self.component.max()) + 1 if self.count else 0
        self._mark_roles()
        groups, group_of, rank = self._groups()
        graph = ChannelGraph(self.follower, self.component, group_of, rank, tuple(groups))
        return replace(graph, groups=tuple(_with_ties(graph)))

    def _mark_roles(self) -> None:
        """Where is each channel produced first, and which atoms are inputs or carried entries?"""
        self.role = np.zeros(self.count, dtype=np.int8)
        for labels in self.ledger.carried:
            self.role[labels.numpy()] = 3
        for labels in self.ledger.consumed:
            self.role[labels.numpy()] = 2
        self.order = np.full(self.count, np.iinfo(np.int64).max)
        self.produced: list[tuple[int, str, Ints]] = []  # the place of its first channel, the layer, its channels
        at = 0
        for labels, layer in self.ledger.produced:
            atoms = labels.numpy()
            atoms = atoms[atoms != NEUTRAL]
            self.role[atoms] = 1
            np.minimum.at(self.order, atoms, at + np.arange(len(atoms)))
            self.produced.append((at, layer, atoms))
            at += len(atoms)
        self.first = np.full(self.channels, np.iinfo(np.int64).max)
        np.minimum.at(self.first, self.component, self.order)

    def _signatures(self) -> tuple[Ints, Tables]:
        """Tell channels apart by the axes they lie on.

        Returns:
            The signature of each channel (-1: it lies on no axis), and signature -> rows (axis, count).
        """
        signature = np.full(self.channels, -1, dtype=np.int64)
        tables: Tables = []
        known: dict[bytes, int] = {}
        if not self.axes:
            return signature, tables
        axis_of_entry = np.repeat(np.arange(len(self.axes)), [len(atoms) for atoms in self.atoms])
        pairs = self.component[np.concatenate(self.atoms)] * len(self.axes) + axis_of_entry
        unique, counts = np.unique(pairs, return_counts=True)
        channel, axis = unique // len(self.axes), unique % len(self.axes)
        rows = np.stack([axis, counts], axis=1).astype(np.int64)
        starts = np.flatnonzero(np.diff(channel, prepend=-1))
        lengths = np.diff(starts, append=len(channel))
        for length in np.unique(lengths).tolist():  # equal lengths stack into one array
            begin = starts[lengths == length]
            stacked = rows[begin[:, None] + np.arange(length)].reshape(len(begin), 2 * length)
            heads = np.flatnonzero(np.append(True, (stacked[1:] != stacked[:-1]).any(axis=1)))
            which = []  # neighbours are mostly alike, so only the first of each run is looked up
            for row in stacked[heads]:
                if row.tobytes() not in known:
                    known[row.tobytes()] = len(tables)
                    tables.append(row.reshape(-1, 2))
                which.append(known[row.tobytes()])
            runs = np.diff(heads, append=len(stacked))
            signature[channel[begin]] = np.repeat(which, runs)
        return signature, tables

    def _frozen_reasons(self) -> tuple[Ints, list[str]]:
        """Return the place of each channel's first reason in a list (0: it is free), and the list."""
        which = np.zeros(self.channels, dtype=np.int64)
        reasons = [""]
        for labels, reason in [*self.ledger.frozen, *self._picked()]:
            atoms = labels.reshape(-1).numpy()
            channels = self.component[atoms[atoms != NEUTRAL]]
            which[channels[which[channels] == 0]] = len(reasons)
            reasons.append(reason)
        for labels, _, operator in self.ledger.across:  # a softmax shares one sum out: another free entry takes of it
            channels = np.unique(self.component[labels[labels != NEUTRAL].numpy()])
            if "softmax" in operator and which[channels].any():
                which[channels[which[channels] == 0]] = len(reasons)
                reasons.append(f"they are weighed against channels that cannot change at {operator}")
        return which, reasons

    def _picked(self) -> list[tuple[Tensor, str]]:
        """Constant positions taken along an axis fix it, if channels vary along that axis."""
        fixed = []
        for plane, axis, reason in self.ledger.picked:
            channels = self.component[plane.labels.numpy()]
            if (channels != np.take(channels, [0], axis=axis)).any():
                fixed.append((plane.labels, reason))
        return fixed

    def _groups(self) -> tuple[list[ChannelGroup], Ints, Ints]:
        group_of = np.full(self.channels, -1, dtype=np.int64)
        rank = np.zeros(self.channels, dtype=np.int64)
        made = [(self._group(*bucket), bucket[1]) for bucket in self._buckets()]
        made.sort(key=lambda item: (item[0].name != "input", self.first[item[1][0]], item[1][0]))
        names = numbered(group.name for group, _ in made)
        groups = [replace(group, name=name) for (group, _), name in zip(made, names, strict=True)]
        for index, (_, channels) in enumerate(made):
            group_of[channels] = index
            rank[channels] = np.arange(len(channels))
        return self._with_statistics(groups, group_of), group_of, rank

    def _buckets(self) -> Iterator[tuple[Ints, Ints, str, bool]]:
        """Yield (axes and counts, channels in order of production, reason, whether it is the input)."""
        signature, tables = self._signatures()
        which, reasons = self._frozen_reasons()
        is_input = np.zeros(self.channels, dtype=np.int64)
        for row in self.follower.input_labels:
            is_input[self.component[row.numpy()]] = 1
        relevant = is_input > 0
        relevant[self.component[self.role > 0]] = True
        chosen = np.flatnonzero(relevant & (signature >= 0))
        names: dict[str, int] = {}  # equal reasons, whoever gave them, are one
        same = np.array([names.setdefault(reason, i) for i, reason in enumerate(reasons)])
        key = (signature * len(reasons) + same[which]) * 2 + is_input
        chosen = chosen[np.lexsort((chosen, self.first[chosen], key[chosen]))]
        cuts = np.flatnonzero(np.diff(key[chosen])) + 1
        for channels in np.split(chosen, cuts) if len(chosen) else ():
            one = channels[0]
            yield tables[signature[one]], channels, reasons[which[one]], bool(is_input[one])

    def _group(self, table: Ints, channels: Ints, reason: str, is_input: bool) -> ChannelGroup:
        members = tuple(self._member(int(axis), int(n), int(channels[0])) for axis, n in table)
        first = int(self.first[channels[0]])
        if is_input:
            return ChannelGroup("input", len(channels), 1, True, reason, members)
        if first == np.iinfo(np.int64).max:  # never
            tensor = members[0].tensor
            reason = reason or "no convolution or linear layer produces these channels"
            return ChannelGroup(tensor, len(channels), 1, True, reason, members)
        _, layer, atoms = self.produced[bisect_right(self.produced, first, key=lambda each: each[0]) - 1]
        output = self.component[atoms]
        step = int(np.count_nonzero(output == channels[0]))
        mine = np.flatnonzero(np.isin(output, channels))
        name = layer if len(mine) == len(output) else f"{layer}[{mine[0]}:{mine[-1] + 1}]"
        return ChannelGroup(name, len(channels) * step, step, bool(reason), reason, members)

    def _member(self, axis: int, count: int, channel: int) -> Member:
        tensor, which = self.axes[axis]
        atoms = self.atoms[axis]
        mine = atoms[self.component[atoms] == channel]
        role = {0: "along", 1: "out", 2: "in", 3: "along"}[int(self.role[mine[0]])]
        return Member(tensor, which, role, count)

    def _with_statistics(self, groups: list[ChannelGroup], group_of: Ints) -> list[ChannelGroup]:
        across: dict[int, dict[str, None]] = {}
        for labels, dims, operator in self.ledger.across:
            channels = np.where(labels.numpy() == NEUTRAL, -1, self.component[labels.numpy()])
            if not any((channels != np.take(channels, [0], axis=a)).any() for a in dims if channels.shape[a]):
                continue  # what is reduced are parts of one channel
            touched = group_of[np.unique(channels[channels >= 0])]
            for index in set(touched.tolist()) - {-1}:
                across.setdefault(index, {})[operator] = None
        return [replace(g, across=tuple(across.get(i, ()))) for i, g in enumerate(groups)]


def numbered(names: Iterable[str]) -> list[str]:
    """Return names made unique: the second of a name has ``#2`` behind it."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _tied(ledger: Ledger, ties: Iterable[tuple[Tensor, Tensor]]) -> Ints:
    pairs = [torch.broadcast_tensors(a, b) if a.shape != b.shape else (a, b) for a, b in ties]  # type: ignore[no-untyped-call]
    if not pairs:
        return np.arange(ledger.count, dtype=np.int64)
    left, right = (torch.cat([pair[side].reshape(-1) for pair in pairs]).numpy() for side in (0, 1))
    real = (left != NEUTRAL) & (right != NEUTRAL) & (left != right)
    return _connected(ledger.count, left[real], right[real])


def _connected(count: int, left: Ints, right: Ints) -> Ints:
    """Return the component of each of ``count`` nodes that these edges join."""
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _with_ties(graph: ChannelGraph) -> list[ChannelGroup]:
    """Join groups that lie in different equal parts of one tensor: their sizes move together."""
    edges: list[tuple[int, int]] = []
    for table in graph.follower.ledger.equal_parts:
        places = graph.places[table.reshape(len(table), -1).numpy()]
        unlike = (places != places[:1]).any(axis=1)  # most are alike: a detector has a row for each anchor
        rows = [np.bincount(row, minlength=len(graph.groups) + 1)[:-1] for row in (*places[:1], *places[unlike])]
        if any((row != rows[0]).any() for row in rows[1:]):
            first, *others = np.flatnonzero(np.sum(rows, axis=0)).tolist()
            edges += [(first, other) for other in others]
    if not edges:
        return list(graph.groups)
    classes = _connected(len(graph.groups), *np.array(edges).T).tolist()
    names: dict[int, list[str]] = {}
    for kind, group in zip(classes, graph.groups, strict=True):
        names.setdefault(kind, []).append(group.name)
    return [
        replace(group, tied=tuple(name for name in names[kind] if name != group.name))
        for kind, group in zip(classes, graph.groups, strict=True)
    ]
