"""What one unit sees along one axis: which positions, where they lie, how they move from unit to unit.

The receptive field along an axis is kept as a bit pattern of an *interior* unit, one that no border cuts. Kernels
are then Boolean convolutions of patterns, so holes that dilation and strides leave are counted exactly, and no
number depends on the size of the map. Borders come in afterwards: a pattern never counts more than the scope holds.

The recurrence ``r += dilation * (kernel - 1) * step; step *= stride`` and the position of a field (effective stride
and padding, alignment of branches) follow Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, reduce

Position = int | Fraction


@dataclass(frozen=True)
class Extent:
    """What an interior unit sees along one axis of the scope.

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
    def centre(self) -> Position:
        """Middle of the field of unit 0."""
        return _tidy(self.first + Fraction(self.size - 1, 2))

    @property
    def padding(self) -> Position:
        """Effective padding: how far the field of unit 0 begins before the scope."""
        return -self.first

    def interval(self, unit: int) -> tuple[int, int]:
        """Return the first and the last position that a unit sees, whether or not they lie inside the scope."""
        first = math.floor(self.first + unit * self.step)
        return first, first + self.size - 1

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
