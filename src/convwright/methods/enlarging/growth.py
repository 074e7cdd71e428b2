"""Growing by budgets: the greedy core, on any space of whole numbers with a cost (`knobs`, `start`, `cost`, `allows`).

Reconstructed: of Greedy Network Enlarging (Liu et al. 2021) the aim is known (stages are enlarged in width, depth and
resolution, greedily, step by step), not its algorithm. Level k has the budget T_k. From each of the best points of a
level every knob is turned until the cost is nearest to the next budget. A knob too coarse for one increment spans
several: it is then judged at the level where it lands, beside what other paths made of the same budget.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from convwright.errors import BudgetError, check_counts
from convwright.methods.shared.halving import Scored, beats

if TYPE_CHECKING:
    from convwright.methods.base import Evidence
    from convwright.methods.enlarging.greedy import GreedyOptions
    from convwright.methods.enlarging.space import EnlargingSpace as Space

Point = tuple[int, ...]
Schedule = Literal["arithmetic", "geometric"]
Ties = Literal["cheaper", "score"]
_SWAPS = 3  # steps up for one step down, where a trim comes to no end by steps up alone
_FURTHEST = 1 << 20  # steps of a knob: beyond, it is taken not to cost anything


@dataclass(frozen=True)
class Knob:
    """Something that can grow.

    Attributes:
        name: in words: ``width of stage1``.
        kind: ``width``, ``depth``, ``resolution``, or any other word.
        stage: index of the stage; -1: none.
        quantum: values are the multiples of this, and the first value.
        growth: in one step a value may at most be multiplied by this, and become larger by `slack`.
        slack: see `growth`.
    """

    name: str
    kind: str = "unit"
    stage: int = -1
    quantum: int = 1
    growth: float = math.inf
    slack: int = 0

    def above(self, value: int, steps: int) -> int:
        """Return the value so many steps above another."""
        return value if not steps else (value // self.quantum + steps) * self.quantum

    def most(self, value: int) -> int:
        """Return how many steps one move may make."""
        if math.isinf(self.growth):
            return _FURTHEST
        return max(1, int((value * self.growth + self.slack) // self.quantum) - value // self.quantum)


@dataclass(frozen=True)
class Score(Scored):
    """What a point was found to be worth: the mean over all times that it was judged; NaN: it failed.

    Attributes:
        times: how often it was judged.
    """

    times: int = 1


def mean_of(told: Sequence[Evidence]) -> Score:
    """Return the mean of repeated trainings; its error falls with their number, as they share the images judged on."""
    count = len(told)
    error = statistics.fmean(e.stderr for e in told) / math.sqrt(count)
    return Score(statistics.fmean(e.score for e in told), error, count, metric=told[0].metric)


def said(score: Score, error: bool = False) -> str:
    """Say a score: ``71.20%``, with how many seeds it is of."""
    value, sign, rest = (score.judged if error else score.shown).partition(" ±")
    times = f" ({score.times} seeds)" if score.times > 1 else ""
    return f"{value}{times}{sign}{rest}"


def told_of(evidence: Evidence, score: Score) -> str:
    """Say a score, or why there is none."""
    return said(score) if evidence.usable else f"failed ({evidence.message})"


@dataclass(frozen=True, eq=False)
class Step:
    """A point that was or will be judged.

    Attributes:
        point: the values.
        level: the budget that it spends.
        cost: what it costs.
        turned: indices of the knobs that led here from `parent`.
        parent: where it came from; None for the first point.
        score: what it was found to be worth, once it was.
    """

    point: Point
    level: int
    cost: int
    turned: tuple[int, ...] = ()
    parent: Step | None = None
    score: Score | None = None

    @property
    def key(self) -> tuple[int, Point]:
        """What tells it from all others of a search."""
        return self.level, self.point

    @property
    def line(self) -> tuple[Step, ...]:
        """All steps from the first point to this one."""
        return (*(self.parent.line if self.parent is not None else ()), self)


@dataclass(frozen=True)
class Level:
    """What happened at one budget.

    Attributes:
        number: from 1 on.
        budget: the cost that was aimed at.
        judged: all candidates with their scores.
        kept: the best of them, best first; empty: none landed here, or all failed, and the budget is carried over.
    """

    number: int
    budget: int
    judged: tuple[Step, ...]
    kept: tuple[Step, ...]


Course = Generator[tuple[Step, ...], Sequence[Score], None]


def budgets(start: int, target: int, steps: int, schedule: Schedule = "arithmetic") -> tuple[int, ...]:
    """Return T_0 = start, ..., T_steps = target.

    Args:
        start: present cost.
        target: cost to come to.
        steps: how many increments.
        schedule: ``arithmetic``: equal increments; ``geometric``: equal ratios.

    Raises:
        BudgetError: the target is not above the start.
        ConvwrightError: there is no step.

    >>> budgets(100, 400, 2), budgets(100, 400, 2, "geometric")
    ((100, 250, 400), (100, 200, 400))
    """
    check_counts(steps=steps)
    if not 0 < start < target:
        raise BudgetError(
            f"a target of {target:,} is not above the present cost of {start:,}; there is nothing to enlarge"
        )
    if schedule == "arithmetic":
        return tuple(start + (target - start) * k // steps for k in range(steps + 1))
    inner = (round(start * (target / start) ** (k / steps)) for k in range(1, steps))
    return (start, *inner, target)


def nearest(space: Space, point: Point, knob: int, budget: float, below: bool = False) -> Point | None:
    """Return the point nearest in cost to a budget that one knob leads to; None if a single step costs nothing.

    Args:
        space: the space.
        point: where it starts.
        knob: index of the knob.
        budget: the cost to come to; of two points equally near, the cheaper.
        below: only points within the budget.
    """
    turn = space.knobs[knob]
    most = turn.most(point[knob])

    def at(steps: int) -> Point:
        return (*point[:knob], turn.above(point[knob], steps), *point[knob + 1 :])

    high = 1
    while high < most and space.cost(at(high)) < budget:
        high = min(2 * high, most)
    if high >= _FURTHEST:
        return None
    # The first that reaches the budget, or the cap.
    first = bisect.bisect_left(range(high), budget, 1, key=lambda n: space.cost(at(n)))
    found = [at(n) for n in (first - 1, first) if n > 0]
    fitting = [p for p in found if not below or space.cost(p) <= budget]
    return min(fitting, key=lambda p: (abs(space.cost(p) - budget), space.cost(p)), default=None)


def enlarge(space: Space, levels: Sequence[int], growth: GreedyOptions, seen: Callable[[Level], None]) -> Course:
    """Go from budget to budget.

    Yields tuples of steps to be judged, and is sent their scores in the same order. After each budget `seen` is
    told what happened.

    Args:
        space: what grows.
        levels: budgets, the present cost first.
        growth: how: its tolerance, beam, span and ties.
        seen: takes what happened at each level.
    """
    walk = _Walk(space, levels, growth)
    walk.depart(Step(space.start, 0, space.cost(space.start)))
    for number in range(1, len(levels)):
        pool = walk.pool(number)
        scores = (yield pool) if pool else ()
        judged = tuple(replace(step, score=score) for step, score in zip(pool, scores, strict=True))
        kept = tuple(ranked(judged, growth.ties)[: growth.beam])
        for step in kept:
            walk.depart(step)
        seen(Level(number, levels[number], judged, kept))


def ranked(judged: Sequence[Step], ties: Ties = "cheaper") -> list[Step]:
    """Return usable steps, best first.

    Steps that were judged more often come first: they were chosen for that, and their means are not to be beaten by the
    lucky draw of one that was left behind. Scores that differ by no more than the standard error of the difference are
    equal: then the cheaper comes first, then the one whose first turned knob comes first. Without errors, or with ties
    decided by ``score``, only equal scores are equal.
    """
    left, order = [s for s in judged if s.score is not None and s.score.usable], []
    while left:
        top = max(left, key=lambda s: (_score(s).times, _score(s).score))
        often = [s for s in left if _score(s).times == _score(top).times]
        tied = [s for s in often if not beats(_score(top), _score(s)) and (ties == "cheaper" or s.score == top.score)]
        order.append(min(tied, key=lambda s: (s.cost, s.turned, s.point)))
        left.remove(order[-1])
    return order


def level_with_the_best(judged: Sequence[Step]) -> list[Step]:
    """Return the steps whose scores equal the highest one within the standard error of the difference, best first."""
    order = ranked(judged, "score")
    return [step for step in order if not beats(_score(order[0]), _score(step))]


def _score(step: Step) -> Score:
    assert step.score is not None
    return step.score


def landings(space: Space, levels: Sequence[int], growth: GreedyOptions) -> int:
    """Return how many moves from the start of a space come near a budget within their span."""
    moves = _Walk(space, levels, growth).moves(Step(space.start, 0, space.cost(space.start)))
    return sum(move.level <= growth.span for move in moves)


@dataclass(eq=False)
class _Walk:
    """Candidates by the level that they land on."""

    space: Space
    levels: Sequence[int]
    growth: GreedyOptions
    waiting: dict[int, list[Step]] = field(default_factory=dict)

    def pool(self, number: int) -> tuple[Step, ...]:
        """Return the candidates of a level, each point once."""
        return tuple({step.point: step for step in reversed(self.waiting.pop(number, []))}.values())[::-1]

    def depart(self, step: Step) -> None:
        """Put all moves from a point to the levels where they land."""
        if step.level + 1 >= len(self.levels):
            return
        moves = list(self.moves(step))
        near = [m for m in moves if m.level - step.level <= self.growth.span]
        # Where every knob is too coarse, the nearest landing is taken, however far.
        first = min((m.level for m in moves), default=0)
        for move in near or [m for m in moves if m.level == first]:
            self.waiting.setdefault(move.level, []).append(move)

    def moves(self, step: Step) -> Iterator[Step]:
        """Yield all moves from a point, each to the first level that it comes near."""
        for knob in range(len(self.space.knobs)):
            landed = (self._lands(step, knob, n) for n in range(step.level + 1, len(self.levels)))
            yield from itertools.islice((m for m in landed if m is not None), 1)

    def _lands(self, step: Step, knob: int, level: int) -> Step | None:
        """Turn a knob to a budget; None where that comes not near it."""
        budget = self.levels[level]
        # The last budget is not exceeded, since a coarse knob could not be turned back a little.
        point = nearest(self.space, step.point, knob, budget, below=level == len(self.levels) - 1)
        cost = step.cost if point is None else self.space.cost(point)
        if point is None or cost <= step.cost or abs(cost - budget) > self.growth.tolerance * budget:
            return None
        return Step(point, level, cost, (knob,), step) if self.space.allows(point) else None


def trimmed(space: Space, point: Point, target: int, tolerance: float, knobs: Sequence[int]) -> Point:
    """Return the point near another that spends a target and no more.

    Args:
        space: the space.
        point: where it starts.
        target: the most that it may cost.
        tolerance: it spends at least 1 - `tolerance` of the target, where steps allow.
        knobs: which knobs may be turned, finest ones are found among them.

    Returns:
        The allowed point that spends most. Values are lowered one step at a time where it costs too much (none below
        the space's start), the smallest saving that suffices first; then raised as long as that fits, and where no step
        fits, one is lowered by a step and another raised.
    """
    while space.cost(point) > target:
        lower = [p for k in knobs if (p := _turned(space, point, k, -1)) is not None]
        if not lower:
            return point
        enough = [p for p in lower if space.cost(p) <= target]
        point = max(enough, key=space.cost) if enough else min(lower, key=space.cost)
    while space.cost(point) < (1 - tolerance) * target:
        higher = [p for k in knobs if (p := _turned(space, point, k, 1)) is not None]
        fitting = [p for p in higher if space.cost(point) < space.cost(p) <= target and space.allows(p)]
        fitting = fitting or list(_swapped(space, point, target, knobs))
        if not fitting:
            break
        point = max(fitting, key=space.cost)
    return point


def _swapped(space: Space, point: Point, target: int, knobs: Sequence[int]) -> Iterator[Point]:
    """Yield points that one knob's step down and another's steps up lead to, if they spend more of a target."""
    for one, two in itertools.permutations(knobs, 2):
        found = _turned(space, point, one, -1)
        for _ in range(_SWAPS):
            found = None if found is None else _turned(space, found, two, 1)
            if found is not None and space.cost(point) < space.cost(found) <= target and space.allows(found):
                yield found


def _turned(space: Space, point: Point, knob: int, by: int) -> Point | None:
    turn, value = space.knobs[knob], point[knob]
    new = max(space.start[knob], turn.above(value, 1) if by > 0 else (value - 1) // turn.quantum * turn.quantum)
    return None if new == value else (*point[:knob], new, *point[knob + 1 :])
