"""Fields by the formula beside exact dependencies, unit by unit."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from convwright.architecture import Architecture
from convwright.metrics import receptive_field  # noqa: F401  (registers the rules)
from convwright.metrics.receptive_field.field import Field
from convwright.metrics.receptive_field.interpreter import FieldWalk

from .oracle import Oracle, Unit


@dataclass(frozen=True)
class Compared:
    """One unit of one layer.

    Attributes:
        layer: its name.
        field: by the formula.
        formula: elements in it, clipped to the input.
        oracle: elements that it depends on.
        interior: whether the field lies inside the input.
    """

    layer: str
    field: Field
    formula: int
    oracle: int
    interior: bool

    @property
    def holds(self) -> bool:
        return self.formula == self.oracle if self.interior and self.field.exact else self.formula >= self.oracle


def walk(arch: Architecture) -> FieldWalk:
    return FieldWalk(arch, arch.capture.inputs[0]).run(range(len(arch.flow.nodes)))


def middle_units(arch: Architecture, found: FieldWalk, seed: int) -> Iterator[tuple[str, Unit, Field, bool]]:
    """Yield a unit near the middle of each layer's map, of a drawn channel."""
    draw = random.Random(seed)
    for layer in arch.layers:
        value = found.values.get(layer.node)
        value = value[0] if isinstance(value, list) else value
        rank = len(found.lengths)
        if value is None or value.whole or value.ndim != rank + 2 or value.grids != tuple(range(2, rank + 2)):
            continue
        unit = Unit(draw.randrange(value.shape[1]), tuple(side // 2 for side in value.shape[2:]))
        field = value.fields[int(value.labels()[(0, unit.channel, *unit.place)])]
        begins = [math.floor(e.first + place * e.step) for e, place in zip(field.extents, unit.place, strict=True)]
        sides = zip(begins, field.extents, found.lengths, strict=True)
        interior = all(begin >= 0 and begin + e.size <= length for begin, e, length in sides)
        yield layer.name, unit, field, interior


def compare(arch: Architecture, count: int = 6, seed: int = 1, interior: bool = True) -> list[Compared]:
    """Compare the formula with the oracle on units of up to ``count`` layers, from the first to the deepest."""
    found = walk(arch)
    assert not found.skipped, found.skipped
    units = [unit for unit in middle_units(arch, found, seed) if unit[3] or not interior]
    picks = sorted({i * (len(units) - 1) // max(count - 1, 1) for i in range(count)}) if units else []
    oracle = Oracle(arch, apart=found.overall, until=units[picks[-1]][0]) if picks else None
    compared = []
    for name, unit, field, inside in (units[i] for i in picks):
        assert oracle is not None
        formula = field.channels.bit_count()
        for extent, length in zip(field.extents, found.lengths, strict=True):
            formula *= extent.inside(length)
        compared.append(Compared(name, field, formula, oracle.value(name, unit), inside))
    return compared


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)
