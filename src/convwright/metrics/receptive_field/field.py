"""Fields of units and of whole tensors.

A *scope* is the tensor on which a field is measured: the network's input, or the input of a stage. The field of a
unit is the set of scope elements that it depends on, kept as extents along the spatial axes times a set of channels.
For a chain of layers this is exact; where branches join it is the smallest such box around the union.

Tensors of a network hold few different fields: after a dense convolution, one. So a ``FieldValue`` lists the fields
and, where they differ, says with integer labels on the tensor's own axes which element has which. Shape operators
are simply executed on the labels, as in the channel analysis: shuffles, splits and concatenations need no rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from convwright.architecture.labels import Plane, compact, line_plane

Position = int | Fraction
Grid = int | Plane | None


# ------------------------------------------------------------------ along one axis


@dataclass(frozen=True)
class Extent:
    """What an interior unit, one that no border cuts, sees along one axis of the scope, as a bit pattern.

    Kernels are Boolean convolutions of patterns, so holes that dilation and strides leave are counted exactly, and no
    number depends on the size of the map. Borders come in afterwards: a pattern never counts more than the scope holds.
    The recurrence ``r += dilation * (kernel - 1) * step; step *= stride`` and the position of a field (effective stride
    and padding, alignment of branches) follow Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
    Neural Networks", Distill 2019.

    Attributes:
        seen: bit b is set if the unit sees position ``first + b`` (of unit 0); bit 0 and the last bit always are.
        first: position of bit 0 for unit 0; negative where it lies in the padding.
        step: how far the field moves from one unit to the next (effective stride).
        least: positions that the narrowest branch spans, from its first to its last.
        spread: twelve times the variance of a step of weight 1 that every kernel on the widest branch spreads evenly
            over its taps.
        aligned: whether all branches have their fields around one centre and move in equal steps.
        exact: whether ``seen`` is exact; after resampling it is an upper bound.
        whole: whether a global operator has made it the whole axis.
    """

    seen: int = 1
    first: Position = 0
    step: Position = 1
    least: int = 1
    spread: Position = 0
    aligned: bool = True
    exact: bool = True
    whole: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # remembered, since tensors with many fields are compared by it
        return hash((self.seen, self.first, self.step, self.whole))

    @property
    def pattern(self) -> Extent:
        """What is seen and nothing else: equal for fields that are equal, however they came about."""
        return Extent(self.seen, self.first, self.step, self.size, whole=self.whole)

    @property
    def size(self) -> int:
        """Positions from the first to the last that is seen: the usual receptive field."""
        return self.seen.bit_length()

    @property
    def count(self) -> int:
        """Positions that are seen."""
        return self.seen.bit_count()

    @property
    def effective(self) -> float:
        """Positions of an even field as wide as the weights really lie: ``sqrt(1 + spread)``, at most ``size``.

        After one kernel it is the kernel; then it grows with the square root of the depth (Luo et al. 2016).
        """
        return min(float(self.size), math.sqrt(1 + self.spread))

    @property
    def padding(self) -> Position:
        """Effective padding: how far the field of unit 0 begins before the scope."""
        return -self.first

    def inside(self, length: int) -> int:
        """Return how many positions a unit sees at most where the scope has ``length`` of them.

        For a field without holes this is ``min(size, length)``.
        """
        if self.count == self.size or self.size <= length:
            return min(self.count, length)
        window = (1 << length) - 1
        return max((self.seen >> shift & window).bit_count() for shift in range(self.size - length + 1))

    def grown(self, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> Extent:
        """Return the extent after a kernel.

        Args:
            kernel: its taps along this axis.
            stride: units from one output to the next.
            dilation: units from tap to tap.
            padding: units in front of the first.
        """
        if self.whole or (kernel, stride, padding) == (1, 1, 0):
            return self
        reach = (kernel - 1) * dilation * self.step
        exact = isinstance(self.step, int)
        if exact:
            seen = _spread(self.seen, kernel, dilation * int(self.step))
        else:  # between two positions: every output may round another way
            seen = (1 << (self.size + math.ceil(reach))) - 1
        return replace(
            self,
            seen=seen,
            first=_tidy(self.first - padding * self.step),
            step=_tidy(self.step * stride),
            least=self.least + math.ceil(reach),
            spread=_tidy(self.spread + (kernel * kernel - 1) * (dilation * self.step) ** 2),
            exact=self.exact and exact,
        )

    def resampled(self, before: int, after: int, taps: int) -> Extent:
        """Return the extent after interpolation from ``before`` to ``after`` units, each from ``taps`` neighbours."""
        if self.whole or before == after:
            return self
        grown = self.grown(taps, padding=(taps - 1) // 2)
        return replace(grown, step=_tidy(Fraction(before, after) * self.step), exact=False)

    def everything(self, length: int) -> Extent:
        """Return the extent of a unit that sees a whole axis of ``length`` positions."""
        return Extent((1 << length) - 1, 0, 0, length, length * length - 1, whole=True)


def join(extents: Iterable[Extent]) -> Extent:
    """Return the extent of a unit that reads several: what any of them sees."""
    return reduce(_join, extents)


def _join(a: Extent, b: Extent) -> Extent:
    if a is b or a == b:
        return a
    if a.whole or b.whole:
        return a if a.whole else b
    first = min(a.first, b.first)
    shifts = [e.first - first for e in (a, b)]
    whole_steps = all(shift.denominator == 1 for shift in shifts) and a.step == b.step
    seen = 0
    for extent, shift in zip((a, b), shifts, strict=True):  # between two positions: it may round either way
        seen |= extent.seen << math.floor(shift) | extent.seen << math.ceil(shift)
    return Extent(
        seen=seen,
        first=first,
        step=max(a.step, b.step),
        least=min(a.least, b.least),
        spread=max(a.spread, b.spread),
        aligned=a.aligned and b.aligned and a.step == b.step and 2 * a.first + a.size == 2 * b.first + b.size,
        exact=a.exact and b.exact and whole_steps,
    )


def _spread(seen: int, taps: int, distance: int) -> int:
    """Return the pattern of ``taps`` copies of a pattern, ``distance`` apart, by doubling."""
    result, copies = seen, 1
    while copies < taps:
        more = min(copies, taps - copies)
        result |= result << more * distance
        copies += more
    return result


def _tidy(position: Position) -> Position:
    """Return whole numbers as integers: they are much faster."""
    return position.numerator if position.denominator == 1 else position


# ------------------------------------------------------------------ along all axes, and of tensors


@dataclass(frozen=True)
class Field:
    """The receptive field of one unit: a box of scope elements.

    Attributes:
        extents: along the spatial axes, e.g. (rows, columns).
        channels: bit c is set if it depends on channel c of the scope.
        box: whether the set is this box; False where branches with different fields joined and the box is only the
            smallest one around them (rows of one branch beside columns of another).
    """

    extents: tuple[Extent, ...]
    channels: int
    box: bool = True

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # remembered, since tensors with many fields are compared by it
        # Python's hash of an integer is a remainder by 2**61 - 1, which is the same for 1 << c and 1 << c + 61.
        return hash((self.extents, self.channels, self.channels.bit_length(), self.box))

    @property
    def whole(self) -> bool:
        """Whether a global operator has made it the whole of a spatial axis."""
        return any(extent.whole for extent in self.extents)

    @property
    def exact(self) -> bool:
        """Whether an interior unit depends on exactly this."""
        return self.box and all(extent.exact for extent in self.extents)


@dataclass(frozen=True, eq=False)
class FieldValue:
    """The fields of all elements of one tensor.

    Attributes:
        shape: of the tensor.
        fields: the different fields in it.
        which: labels, per element the index into ``fields``; None if there is one field.
        grids: per spatial axis of the scope, where the units along it lie in this tensor: the axis, as a plane of
            unit numbers where they are spread over several axes, or None once the axis is gone.
    """

    shape: tuple[int, ...]
    fields: tuple[Field, ...]
    which: Plane | None = None
    grids: tuple[Grid, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @cached_property
    def whole(self) -> bool:
        """Whether all its fields come from a global operator."""
        return all(field.whole for field in self.fields)

    def labels(self) -> Tensor:
        """Return the labels of all elements, expanded to the tensor's shape."""
        if self.which is None:
            return torch.zeros((), dtype=torch.int64).expand(self.shape)
        return self.which.labels.expand(self.shape)

    def varies(self, axis: int) -> bool:
        """Whether elements along an axis differ in their fields."""
        return self.which is not None and axis in self.which.axes

    def plane(self, number: int) -> Plane | None:
        """Return the unit numbers along one spatial axis of the scope."""
        grid = self.grids[number]
        if not isinstance(grid, int):
            return grid
        return line_plane(torch.arange(self.shape[grid]), grid, self.ndim)

    def holds(self, grid: Grid, axis: int) -> bool:
        """Whether the units of a grid lie along an axis of the tensor."""
        return grid == axis if not isinstance(grid, Plane) else axis in grid.axes

    def changed(self, change: Callable[[tuple[Extent, ...]], tuple[Extent, ...]]) -> FieldValue:
        """Return the same tensor with other extents (each is changed once: fields share them)."""
        done: dict[int, tuple[Extent, ...]] = {}
        for field in self.fields:
            if id(field.extents) not in done:
                done[id(field.extents)] = change(field.extents)
        if all(done[id(field.extents)] is field.extents for field in self.fields):
            return self
        fields = tuple(Field(done[id(field.extents)], field.channels, field.box) for field in self.fields)
        return with_labels(replace(self, fields=fields), self.which)


def seed(shape: Sequence[int], channel_axis: int) -> FieldValue:
    """Return the scope itself: every element sees itself and nothing else."""
    ndim = len(shape)
    axes = tuple(a for a in range(1, ndim) if a != channel_axis)
    here = (Extent(),) * len(axes)
    fields = tuple(Field(here, 1 << c) for c in range(shape[channel_axis]))
    which = line_plane(torch.arange(len(fields)), channel_axis, ndim) if len(fields) > 1 else None
    return FieldValue(tuple(shape), fields, which, axes)


def union(fields: Iterable[Field]) -> Field:
    """Return the field of a unit that reads units with these fields.

    Fields that a global operator has made whole (the gate of squeeze-and-excitation, an image-pooling branch)
    do not count beside local ones: everything would be seen from there on, and nothing said.
    """
    listed = list(fields)
    listed = [field for field in listed if field.channels] or listed  # zeros that were padded see nothing
    local = [field for field in listed if not field.whole] or listed
    channels = 0
    # Fields of one tensor mostly share their extents, so these are compared as objects before they are joined.
    extents: dict[int, tuple[Extent, ...]] = {}
    boxes: dict[int, int] = {}  # channels of the boxes that have these extents: side by side they are one box
    for field in local:
        channels |= field.channels
        key = id(field.extents)
        extents[key] = field.extents
        if field.box:
            boxes[key] = boxes.get(key, 0) | field.channels
    boxed = all(field.box for field in local)
    if len(extents) == 1:
        (only,) = extents.values()
        return Field(only, channels, boxed or channels in boxes.values())
    hull = tuple(join(along) for along in zip(*extents.values(), strict=True))
    return Field(hull, channels, _fill([(extents[key], c) for key, c in boxes.items()], hull, channels, boxed))


def _fill(
    found: Sequence[tuple[tuple[Extent, ...], int]], hull: tuple[Extent, ...], channels: int, complete: bool
) -> bool:
    """Return whether boxes can be seen to fill their hull: boxes that differ along one side only make one box."""
    goal = (*(e.pattern for e in hull), channels)
    boxes: set[tuple[Any, ...]] = {(*(e.pattern for e in extents), c) for extents, c in found}
    if goal in boxes:
        return True
    if not complete:  # others are no boxes
        return False
    for free in reversed(range(len(goal))):
        alike: dict[tuple[Any, ...], Any] = {}
        for box in boxes:
            rest, side = (*box[:free], *box[free + 1 :]), box[free]
            if rest in alike:
                side = alike[rest] | side if free == len(hull) else join((alike[rest], side)).pattern
            alike[rest] = side
        boxes = {(*rest[:free], side, *rest[free:]) for rest, side in alike.items()}
    return goal in boxes


def with_labels(value: FieldValue, which: Plane | Tensor | None) -> FieldValue:
    """Return a value with these labels, equal fields merged and axes without variation dropped."""
    if isinstance(which, Tensor):
        which = compact(which)
    if which is None or not which.axes:
        only = value.fields[0 if which is None else int(which.labels.reshape(-1)[0])]
        return replace(value, fields=(only,), which=None)
    used, line = torch.unique(which.labels, return_inverse=True)
    number: dict[Field, int] = {}
    places = [number.setdefault(value.fields[old], len(number)) for old in used.tolist()]
    if len(number) == len(places) == len(value.fields):
        return replace(value, which=which)
    if len(number) == 1:
        return replace(value, fields=tuple(number), which=None)
    merged = torch.tensor(places)[line]
    plane = Plane(merged, which.axes) if len(number) == len(places) else compact(merged)
    return replace(value, fields=tuple(number), which=plane)


def without_axes(x: FieldValue, dims: Sequence[int], shape: tuple[int, ...], keep: bool) -> FieldValue:
    """Return a reduced value without the reduced axes, or with them at size 1."""
    if keep:
        return replace(x, shape=shape)
    places = {a: a - sum(d < a for d in dims) for a in range(x.ndim) if a not in dims}
    grids = tuple(places.get(g) if isinstance(g, int) else None for g in x.grids)
    which = None
    if x.which is not None:
        labels = x.which.labels.squeeze(tuple(dims)) if dims else x.which.labels
        which = Plane(labels, tuple(places[a] for a in x.which.axes))
    return replace(x, shape=shape, which=which, grids=grids)
