"""Successive halving: many candidates are trained a little, the better ones on, until few are left.

The arithmetic alone: how many candidates a budget pays for, how long each rung trains them, and who goes on. What
a score is worth is its standard error: candidates that it cannot tell from the last one that goes on may go on, too.
After Jamieson and Talwalkar 2016 (arXiv 1502.07943); that weights are continued, so that a rung's epochs come on top of
those before, and the treatment of ties, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import Self

from convwright.errors import ConvwrightError
from convwright.methods.base import Evidence
from convwright.ranking import ACCURACY, Metric, Ranked


@dataclass(frozen=True)
class Rung:
    """One round of trainings.

    Attributes:
        count: Candidates that are trained.
        epochs: Of each, on top of those before.
    """

    count: int
    epochs: int

    @property
    def cost(self) -> int:
        """Epochs of all together."""
        return self.count * self.epochs


@dataclass(frozen=True)
class Scored(Ranked):
    """A candidate's score and its standard error, and what they are of; NaN where it failed."""

    score: float
    stderr: float = 0.0
    metric: Metric = field(default=ACCURACY, kw_only=True)

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Return the score of a trial."""
        return cls(evidence.score if evidence.usable else math.nan, evidence.stderr, metric=evidence.metric)

    @property
    def usable(self) -> bool:
        """Whether there is a score."""
        return math.isfinite(self.score)


def rungs(count: int, budget: int, eta: int = 3, last: int = 3, least: int = 1) -> tuple[Rung, ...]:
    """Return the rungs that a budget pays for: as many candidates as possible, then as many epochs.

    Each rung keeps one in `eta` and trains it `eta` times as long, so all rungs cost about the same, until `last` or
    fewer are trained.

    Args:
        count: Candidates that there are.
        budget: Epochs of all trainings together.
        eta: Share that goes on: one in so many.
        last: The last rung has so many at most.
        least: Each rung after the first has so many at least; no more than `last`.

    Raises:
        ConvwrightError: A number is out of its range, or there is not one epoch.

    Examples:
        >>> [(rung.count, rung.epochs) for rung in rungs(9, 18)], [(r.count, r.epochs) for r in rungs(12, 90)]
        ([(9, 1), (3, 3)], [(12, 2), (4, 6), (2, 18)])
    """
    if count < 1 or budget < 1 or eta < 2 or last < 1:
        raise ConvwrightError(
            f"halving: count={count}, budget={budget}, eta={eta}, last={last}: give at least 1 of each, and eta from 2"
        )
    for begun in range(min(count, budget), 0, -1):
        shape = [Rung(begun, 1)]
        while shape[-1].count > last:
            shape.append(Rung(max(least, math.ceil(shape[-1].count / eta)), shape[-1].epochs * eta))
        unit = budget // sum(rung.cost for rung in shape)
        if unit:
            return tuple(Rung(rung.count, rung.epochs * unit) for rung in shape)
    raise AssertionError("one candidate of one epoch always fits")


def tied(one: Scored, other: Scored, errors: float = 1.0) -> bool:
    """Return whether two scores differ by no more than so many standard errors of their difference."""
    return abs(one.score - other.score) <= errors * math.hypot(one.stderr, other.stderr)


def beats(one: Scored, other: Scored, errors: float = 1.0) -> bool:
    """Return whether one score is higher than another by more than so many standard errors of their difference.

    Examples:
        >>> beats(Scored(0.72, 0.01), Scored(0.70, 0.01)), beats(Scored(0.72, 0.01), Scored(0.70, 0.01), errors=2.0)
        (True, False)
    """
    return one.usable and other.usable and one.score > other.score and not tied(one, other, errors)


def ranking(scored: Sequence[Scored]) -> tuple[int, ...]:
    """Return the places of those that have a score, the best first; of equal ones the earlier."""
    return tuple(sorted((i for i, s in enumerate(scored) if s.usable), key=lambda i: -scored[i].score))


def survivors(scored: Sequence[Scored], keep: int, most: int | None = None) -> tuple[int, ...]:
    """Return the places of the candidates that go on, the best first.

    Args:
        scored: Of all.
        keep: So many of those that have a score.
        most: And so many at most with those after them that are tied with the last of them; None: `keep`.

    Examples:
        >>> survivors([Scored(0.70, 0.01), Scored(0.9, 0.01), Scored(0.69, 0.01)], keep=2, most=3)
        (1, 0, 2)
    """
    order = ranking(scored)
    kept = order[: max(keep, 0)]
    if not kept or most is None:
        return kept
    edge = scored[kept[-1]]
    also = [i for i in order[len(kept) :] if tied(scored[i], edge)]
    return (*kept, *also[: max(most - len(kept), 0)])
