"""How a field becomes a number: the 3DRF as the reconstruction counts it, or by what reaches a unit effectively."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from convwright.architecture import Architecture, Stage
from convwright.metrics.receptive_field import rules as field_rules  # noqa: F401  (registers the rules)
from convwright.metrics.receptive_field.extent import Extent
from convwright.metrics.receptive_field.field import FieldValue
from convwright.metrics.receptive_field.interpreter import FieldWalk


@dataclass(frozen=True)
class Measured:
    """The 3DRF of a tensor's elements.

    Attributes:
        mean: over the elements.
        smallest: of the element that sees least.
        largest: of the one that sees most.
        channels: scope channels that reach an element, on average.
    """

    mean: float
    smallest: float
    largest: float
    channels: float


@dataclass(frozen=True)
class FieldMeasure:
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

    def measure(self, walk: FieldWalk, value: FieldValue) -> Measured:
        """Return the 3DRF of a value's elements on the walk's scope."""
        spatial = {id(f.extents): f.extents for f in value.fields}  # fields share them: count each once
        counts = {
            key: math.prod(self.positions(e, n) for e, n in zip(extents, walk.lengths, strict=True))
            for key, extents in spatial.items()
        }
        values = [counts[id(f.extents)] * f.channels.bit_count() for f in value.fields]
        often = amounts(value)
        total = sum(often)
        mean = sum(v * n for v, n in zip(values, often, strict=True)) / total
        channels = sum(f.channels.bit_count() * n for f, n in zip(value.fields, often, strict=True)) / total
        return Measured(mean, min(values), max(values), channels)

    def share(self, part: StagePart, walk: FieldWalk) -> float:
        """Return rho of a stage from a walk over it: the share of its scope that its output sees."""
        return self.measure(walk, part.output(walk)).mean / scope_size(walk)


@dataclass(frozen=True, eq=False)
class StagePart:
    """A stage as a part of the flow.

    Attributes:
        arch: the network.
        scope: name of the node whose value is the stage's input.
        positions: of the flow, from behind the scope to the end of the stage.
        ends: names of the nodes that may be its output, the last one first.
        map_size: rows times columns of the last convolution's output; 1 where there is none.
    """

    arch: Architecture
    scope: str
    positions: range
    ends: tuple[str, ...]
    map_size: int = 1

    @classmethod
    def of(cls, arch: Architecture, stage: Stage) -> StagePart:
        """Find a stage in the flow.

        It ends with what its last layer's value is put together to: a concatenation or a channel shuffle is no layer.
        """
        flow = arch.flow
        inside = {flow.place[arch.layer(name).node] for name in stage.layers}
        outside = {source for n in inside for source in flow.feeds[n] if source not in inside}
        layers = {flow.place.get(layer.node) for layer in arch.layers}  # None: computed from weights alone
        last = max(inside)
        while len(flow.users[last]) == 1 and flow.users[last][0] not in layers:
            last = flow.users[last][0]
        entry = flow.meet(outside)
        ends = dict.fromkeys([last, *sorted(inside, reverse=True)])
        names = tuple(flow.nodes[n].name for n in ends)
        shapes = [arch.layer(name).output_shape for name in stage.layers if arch.layer(name).kind == "conv"]
        size = math.prod(shapes[-1][2:]) if shapes else 1
        return cls(arch, flow.nodes[entry].name, range(entry + 1, last + 1), names, size)

    def begin(self) -> FieldWalk:
        """Return a walk on the stage's own scope that has not begun."""
        return FieldWalk(self.arch, self.scope)

    def walk(self) -> FieldWalk:
        """Return a walk over the whole stage."""
        return self.begin().run(self.positions)

    def output(self, walk: FieldWalk) -> FieldValue:
        """Return the value that the stage hands on: its last one that is not a global operator's."""
        known = [v for v in map(walk.value_at, self.ends) if v is not None]
        return next((v for v in known if not v.whole), known[0])


def amounts(value: FieldValue) -> list[int]:
    """Return how often each of a tensor's fields occurs, as whole numbers: a share of 1 must come out as 1."""
    if value.which is None:
        return [1]
    counted: list[int] = torch.bincount(value.which.line(), minlength=len(value.fields)).tolist()
    return counted


def scope_size(walk: FieldWalk) -> int:
    """Return the number of elements of a walk's scope, for one sample."""
    return walk.channels * math.prod(walk.lengths)
