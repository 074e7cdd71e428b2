"""How a field becomes a number: the 3DRF as the reconstruction counts it, or by what reaches a unit effectively."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convwright.metrics.field_walk import FieldWalk
from convwright.metrics.receptive_field import scope_size, shares_of, stage_output, stage_scope

if TYPE_CHECKING:
    from convwright.architecture import Architecture, Stage
    from convwright.metrics.extent import Extent
    from convwright.metrics.field import Value


@dataclass(frozen=True)
class Sight:
    """A way to count what a unit sees.

    Attributes:
        clip: cut fields at the borders of the scope.
        effective: count positions by the width over which weights really lie, ``Extent.effective``. It grows with
            the square root of the depth, so a stage is saturated later than by its theoretical field. Not part of
            the published method.
    """

    clip: bool = True
    effective: bool = False

    def positions(self, extent: Extent, length: int) -> float:
        """Return how many of ``length`` positions of the scope are seen."""
        if self.effective:
            return min(extent.effective, length) if self.clip else extent.effective
        return extent.inside(length) if self.clip else extent.count

    def value(self, walk: FieldWalk, value: Value) -> float:
        """Return the 3DRF of a value on the walk's scope, the mean over its elements."""
        total = 0.0
        for field, weight in zip(value.fields, shares_of(value), strict=True):
            seen = (self.positions(e, length) for e, length in zip(field.extents, walk.lengths, strict=True))
            total += weight * math.prod(seen) * field.channels.bit_count()
        return total

    def share(self, arch: Architecture, stage: Stage, walk: FieldWalk) -> float:
        """Return rho of a stage from a walk over it: the share of its scope that its output sees."""
        return self.value(walk, stage_output(arch, stage, walk)) / scope_size(walk)


def walk_stage(arch: Architecture, stage: Stage) -> tuple[FieldWalk, range]:
    """Return a walk on a stage's own scope that has not begun, and the positions of the flow that it takes."""
    scope, end = stage_scope(arch, stage)
    return FieldWalk(arch, scope), range(arch.flow.place[scope] + 1, end + 1)
