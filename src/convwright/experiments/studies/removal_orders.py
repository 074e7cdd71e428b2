"""In what order blocks are left out of a trained network: by conflict, by the loss each causes, greedily, at random."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from convwright.experiments.studies.lesion import Measure
from convwright.training.data.loader import derived_seed
from convwright.training.probes.bundle_points import Points
from convwright.training.probes.bundle_reading import Reading, read_bundles

if TYPE_CHECKING:
    from torch import Tensor, nn

GRADES = 11  # readings of the graded conflict, each with a grid four times as coarse as the one before


def by_conflict(names: Sequence[str], points: Points, reading: Reading) -> tuple[str, ...]:
    """Return blocks by the share of samples in conflict in their branch, the highest first.

    Args:
        names: Of blocks, in the order of execution; of two alike the deeper one goes first.
        points: Where bundles were counted.
        reading: What was counted.
    """
    place = {
        name: (-conflict_of(points, reading, name), reading.points[points.own[name]].count, -number)
        for number, name in enumerate(names)
    }
    return tuple(sorted(names, key=place.__getitem__))


def conflict_of(points: Points, reading: Reading, name: str) -> float:
    """Return the share of samples in conflict in a block's branch beyond that of the images; 1 where it diverged."""
    excess = reading.excess[points.own[name]]
    return 1.0 if math.isnan(excess) else excess


def graded_conflicts(
    model: nn.Module,
    points: Points,
    sample: tuple[Tensor, Tensor],
    names: Sequence[str],
    *,
    learning_rate: float,
    batch_size: int,
    grades: int = GRADES,
) -> dict[str, float]:
    """Return per block the mean share of samples in conflict over coarser and coarser grids.

    The published test says yes or no. A smaller learning rate has a coarser grid, so that sooner or later every branch
    conflicts; how soon orders blocks that all pass the published test. It is 0 for a block that keeps all samples
    apart on every grid.

    Args:
        model: The network, as it was read.
        points: Where to look.
        sample: Training images (n, c, h, w), normalised, and labels (n,).
        names: Of blocks.
        learning_rate: Of training: that of the first grid.
        batch_size: Of training.
        grades: Grids, the first being the published one.
    """
    total = dict.fromkeys(names, 0.0)
    for grade in range(grades):
        reading = read_bundles(
            model, points, *sample, learning_rate=learning_rate / 4**grade, batch_size=batch_size
        )  # fmt: skip
        for name in names:
            total[name] += conflict_of(points, reading, name)
    return {name: value / grades for name, value in total.items()}


def by_value(names: Sequence[str], values: Mapping[str, float]) -> tuple[str, ...]:
    """Return blocks by a value, the highest first; of two alike the deeper one."""
    place = {name: (-values[name], -number) for number, name in enumerate(names)}
    return tuple(sorted(names, key=place.__getitem__))


def by_own_loss(names: Sequence[str], measure: Measure) -> tuple[str, ...]:
    """Return blocks by the loss of the network without each alone, the lowest first."""
    return by_value(names, {name: -measure(frozenset({name})).loss for name in names})


def greedily(names: Sequence[str], measure: Measure, *, fall: float = 0.3) -> tuple[str, ...]:
    """Return blocks so that each next one costs least, given those that are out already.

    Args:
        names: Of blocks, in the order of execution.
        measure: Gives accuracy and loss without some blocks. Not on test images: it decides.
        fall: Where the accuracy is lower than the whole network's by so much, the rest follows in the order of the
            last comparison: nobody would remove as many.
    """
    left, out = list(names), list[str]()
    least = measure(frozenset()).accuracy - fall
    while left:
        loss = {name: measure(frozenset((*out, name))).loss for name in left}
        ranked = sorted(left, key=lambda name: (loss[name], -names.index(name)))
        out.append(ranked[0])
        left.remove(ranked[0])
        if measure(frozenset(out)).accuracy < least:
            out += ranked[1:]
            break
    return tuple(out)


def at_random(names: Sequence[str], count: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Return orders drawn by a seed."""
    drawn = []
    for number in range(count):
        order = list(names)
        random.Random(derived_seed(seed, number)).shuffle(order)
        drawn.append(tuple(order))
    return tuple(drawn)
