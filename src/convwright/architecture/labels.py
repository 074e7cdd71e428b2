"""Labels on tensors: what the channel analysis carries through the graph.

Every axis of every parameter gets fresh integers, one per index: its *atoms*. A value in the graph carries
*planes*: integer tensors of its own shape that say, for each element, which atom it belongs to. A plane is kept
compact, with size 1 along the axes where it does not vary, so a plane over (1, 64, 112, 112) costs 64 integers.
Weights carry one plane per axis; activations usually carry one, along their channel axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEUTRAL = -1  # label of an element that belongs to no channel


class ResizeError(Exception):
    """The graph cannot be followed with the requested sizes; the message says where and why."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One labelling of a value.

    Attributes:
        labels: integers, of the value's rank; size 1 along axes where the label does not vary.
        axes: the axes along which the label varies, ascending.
    """

    labels: Tensor
    axes: tuple[int, ...]

    def line(self) -> Tensor:
        """Return the labels flattened."""
        return self.labels.reshape(-1)


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of one tensor in the graph.

    Attributes:
        shape: its shape (under the sizes of the current run).
        planes: its labellings, along disjoint sets of axes.
        weight: it is computed from parameters and constants alone.
        parameter: its qualified name when it is a parameter or buffer itself.
    """

    shape: tuple[int, ...]
    planes: tuple[Plane, ...] = ()
    weight: bool = False
    parameter: str | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def plane_at(self, axis: int) -> Plane | None:
        """Return the plane that varies along ``axis``, if any."""
        return next((p for p in self.planes if axis in p.axes), None)


Values = Value | list[Value]


@dataclass
class Ledger:
    """What the rules write down while they follow the labels: ties, freezes, roles."""

    count: int = 0
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    consumed: list[Tensor] = field(default_factory=list)
    produced: list[tuple[Tensor, str]] = field(default_factory=list)
    carried: list[Tensor] = field(default_factory=list)
    across: list[tuple[Tensor, tuple[int, ...], str]] = field(default_factory=list)
    equal_parts: list[Tensor] = field(default_factory=list)
    picked: list[tuple[Plane, int, str]] = field(default_factory=list)

    def fresh(self, size: int) -> Tensor:
        """Return ``size`` labels never used before."""
        start = self.count
        self.count += size
        return torch.arange(start, start + size, dtype=torch.int32, device="cpu")

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Say that labels at equal places live and die together (shapes broadcast)."""
        if first is second:
            return
        if first.shape != second.shape:
            torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call] # raises: no fit
        self.ties.append((first, second))

    def tie_rows(self, table: Tensor) -> None:
        """Say that the same place in each row lives and dies together; yet which row a channel is in matters."""
        self.rows.append(table)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Say that these labels cannot change, and why."""
        self.frozen.append((labels, reason))

    def freeze_value(self, value: Value, reason: str) -> None:
        """Freeze every label of a value."""
        for plane in value.planes:
            self.freeze(plane.labels, reason)

    def produce(self, labels: Tensor, layer: str) -> None:
        """Say that ``layer`` makes these channels (its weight's output axis)."""
        self.produced.append((labels.reshape(-1), layer))

    def consume(self, labels: Tensor) -> None:
        """Say that these labels are a weight's input axis: summed over, so copies must share."""
        self.consumed.append(labels.reshape(-1))

    def carry(self, labels: Tensor) -> None:
        """Say that these labels index per-channel parameters (norms, depthwise kernels, scales)."""
        self.carried.append(labels.reshape(-1))


def line_plane(labels: Tensor, axis: int, ndim: int) -> Plane:
    """Place a row of labels along one axis of a value of rank ``ndim``."""
    return Plane(on_axis(labels, axis, ndim), (axis,))


def on_axis(row: Tensor, axis: int, ndim: int) -> Tensor:
    """Return a row as a tensor of rank ``ndim`` that lies along one axis."""
    shape = [1] * ndim
    shape[axis] = row.numel()
    return row.reshape(shape)


def compact(labels: Tensor, axes: Sequence[int] | None = None) -> Plane:
    """Drop the axes along which the labels do not vary.

    Args:
        labels: integers of the value's full shape.
        axes: the axes known to vary; found by comparison when not given.
    """
    if axes is None:
        axes = _varying(labels)
    return Plane(narrowed(labels, (a for a in range(labels.ndim) if a not in axes)), tuple(axes))


def narrowed(labels: Tensor, axes: Iterable[int], ledger: Ledger | None = None) -> Tensor:
    """Return the labels at the first place along some axes; a ledger ties those at the other places to them."""
    for axis in axes:
        first = labels.narrow(axis, 0, min(1, labels.size(axis)))
        if ledger is not None:
            ledger.tie(labels, first)
        labels = first
    return labels


def _varying(labels: Tensor) -> list[int]:
    candidates = [a for a in range(labels.ndim) if labels.size(a) > 1 and labels.stride(a) != 0]
    expanded = (a for a in range(labels.ndim) if a not in candidates and labels.size(a) > 1)
    labels = narrowed(labels, expanded)  # first: they are free to drop
    varying = []
    for axis in candidates:
        first = labels.narrow(axis, 0, min(1, labels.size(axis)))
        if bool((labels == first).all()):
            labels = first
        else:
            varying.append(axis)
    return varying


def along(ledger: Ledger, value: Value, axis: int) -> Tensor | None:
    """Return the labels along ``axis`` as a row, tying whatever else the plane varies along.

    A plane over (channel, height, width) means that positions of one channel came from different
    indices (an unflattened linear layer): they share their fate from here on.
    """
    plane = value.plane_at(axis)
    if plane is None:
        return None
    return narrowed(plane.labels, (other for other in plane.axes if other != axis), ledger).reshape(-1)


def reduce_axes(ledger: Ledger, value: Value, dims: Iterable[int], keepdim: bool) -> tuple[Plane, ...]:
    """Reduce ``dims``: planes wholly inside vanish, planes partly inside are tied along them."""
    dims = set(dims)
    kept = []
    for plane in value.planes:
        remaining = tuple(a for a in plane.axes if a not in dims)
        if not remaining:
            continue
        labels = narrowed(plane.labels, (a for a in plane.axes if a in dims), ledger)
        if not keepdim:
            labels = labels.squeeze(tuple(dims)) if dims else labels
            remaining = tuple(a - sum(d < a for d in dims) for a in remaining)
        kept.append(Plane(labels, remaining))
    return tuple(kept)


def merge(ledger: Ledger, values: Sequence[Value], ndim: int) -> tuple[Plane, ...]:
    """Combine operands of an elementwise operator: planes along common axes are tied.

    Shapes align at the right, as in broadcasting. Of two tied planes the one over fewer axes is kept:
    it says the same with less.
    """
    result: list[Plane] = []
    for value in values:
        lift = ndim - value.ndim
        for plane in value.planes:
            lifted = Plane(plane.labels[(None,) * lift], tuple(a + lift for a in plane.axes)) if lift else plane
            _join(ledger, result, lifted)
    return tuple(result)


def _join(ledger: Ledger, result: list[Plane], new: Plane) -> None:
    for index, old in enumerate(result):
        if set(old.axes) & set(new.axes):
            ledger.tie(old.labels, new.labels)
            if set(new.axes) < set(old.axes):
                result[index] = new
            return
    result.append(new)


def reshape_blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split a reshape into its smallest independent parts.

    Returns:
        Pairs (axes before, axes after) with equal products, in order. Axes of size 1 join the
        part at their left.

    Examples:
        >>> reshape_blocks((1, 6, 5), (1, 2, 3, 5))
        [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
        p = q = 1
        if i < len(before):
            left, p, i = [i], before[i], i + 1
        if j < len(after):
            right, q, j = [j], after[j], j + 1
        while p != q:
            if p < q and i < len(before):
                left.append(i)
                p, i = p * before[i], i + 1
            elif j < len(after):
                right.append(j)
                q, j = q * after[j], j + 1
            else:
                break
        blocks.append((tuple(left), tuple(right)))
    return blocks


def with_sizes(shape: Sequence[int], planes: Iterable[Plane]) -> tuple[int, ...]:
    """Return ``shape`` with the sizes that the planes have along the axes they vary along."""
    sizes = list(shape)
    for plane in planes:
        for axis in plane.axes:
            sizes[axis] = plane.labels.size(axis)
    return tuple(sizes)
