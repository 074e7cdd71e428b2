"""The widest network within a budget when all widths share one ratio, or powers of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from convwright.architecture import Architecture
from convwright.cost.budget import Limits
from convwright.cost.cost_model import CostModel
from convwright.edits import Width, scale_widths, solve
from convwright.edits.constraints import ENOUGH, Divisor, DivisorLike, levels_of, multiple_of, width_range
from convwright.errors import BudgetError, ConvwrightError, EditError

_HALVINGS = 20  # bisections of the ratio: finer than one channel in half a million
_SMALLEST = 1 / 8192  # ratio at which shrinking gives up
_LARGEST = 1024.0  # ratio at which growing gives up
_FULL = 0.999  # share of the budget from which nothing more is added
_FULL_ESTIMATED = 0.97  # the same where a limit is on an estimate, such as latency: finer than this is noise
_SPREAD = 1.15  # a single group may be regrown to so much above the common ratio, rounded up

BETTER = 0.005  # of two divisors the finer one is taken only if it uses so much more of the budget

Widths = dict[str, int]
_Found = TypeVar("_Found")
_Level = TypeVar("_Level")


def uniform_widths(
    architecture: Architecture,
    limits: Limits,
    divisor: DivisorLike = 1,
    weights: Mapping[str, float] | None = None,
    fill: bool = True,
) -> tuple[Width, ...]:
    """Scale all free groups by the largest common ratio that meets all limits, or by powers of one.

    Whole channels leave some of the budget over. It is spent on single groups, those furthest below
    the common ratio first, so that the budget is met from below and used as well as possible.

    Args:
        architecture: The network.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this; ``auto``: the coarsest with which the budget can be used.
        weights: By group name, from 0 (stays) to 1: a group of weight w is scaled by ratio ** w, groups left out stay.
            None: 1 for every group.
        fill: Spend what whole channels leave over on single groups. Without it, groups of one size and one weight
            stay equal.

    Returns:
        One edit per group that changes.

    Raises:
        BudgetError: Even the smallest widths break a limit.
    """

    def scaled(level: Divisor) -> tuple[tuple[Width, ...], float]:
        search = _Search(architecture, limits, level, weights)
        ratio = search.largest_ratio()
        edits = search.edits(ratio)
        regrown = search.regrown(edits, ratio) if fill else edits
        used = search.used(regrown)
        return (regrown, used) if used <= 1 else (edits, search.used(edits))

    return finest_needed(levels_of(divisor), scaled)


def finest_needed(levels: Sequence[_Level], found: Callable[[_Level], tuple[_Found, float]]) -> _Found:
    """Return what the coarsest divisor gives that uses the budget well enough, or as well as any finer one.

    Args:
        levels: Divisors, or what has widths of them, from coarse to fine.
        found: Returns what a level gives, and the share of the budget that it uses.

    Raises:
        ConvwrightError: None gives anything; the finest one's error.
    """
    best: tuple[_Found, float] | None = None
    for level in levels:
        try:
            one = found(level)
        except ConvwrightError:  # such as a budget that only finer widths meet
            if level is levels[-1] and best is None:
                raise
            continue
        if one[1] >= ENOUGH:
            return one[0]
        best = one if best is None or one[1] > best[1] + BETTER else best
    assert best is not None
    return best[0]


def solved(arch: Architecture, edits: Sequence[Width]) -> dict[str, int]:
    """Return the sizes of all free groups under edits, tied ones included."""
    units = solve(arch, edits).units
    return {g.name: int(u) * g.step for g, u in zip(arch.groups, units, strict=True) if not g.frozen}


class _Search:
    """Exact costs of sets of edits, remembered."""

    def __init__(
        self, architecture: Architecture, limits: Limits, divisor: Divisor, weights: Mapping[str, float] | None = None
    ) -> None:
        self.architecture, self.limits, self.divisor, self.weights = architecture, limits, divisor, weights
        self.model = CostModel.of(architecture)
        self.full = _FULL_ESTIMATED if limits.estimates else _FULL

        self.loose = {g.name: g for g in architecture.free_groups if not g.tied}  # a tied one would take others along

    def use(self, widths: Mapping[str, int]) -> float:
        """Return the share of the tightest limit that is used; above 1 it is broken."""
        costs = self.limits.costs(self.model, widths)
        return max(costs[metric] / limit for metric, limit in self.limits.limits.items())

    def used(self, edits: Sequence[Width]) -> float:
        """Return `use` under the edits; infinite if they cannot be carried out together."""
        try:
            return self.use(solved(self.architecture, edits))
        except (EditError, BudgetError):  # such as a part of a tied group that would vanish
            return math.inf

    def edits(self, ratio: float) -> tuple[Width, ...]:
        ratios = ratio if self.weights is None else {name: ratio**weight for name, weight in self.weights.items()}
        return scale_widths(self.architecture, ratios, self.divisor, check=False)  # checked once, by the caller

    def largest_ratio(self) -> float:
        """Bisect between a ratio that fits and one that does not."""
        low, high = self._bracket()
        if math.isinf(high):
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            used = self.used(self.edits(middle))
            low, high = (middle, high) if used <= 1 else (low, middle)
            if self.full <= used <= 1:
                break
        return low

    def _bracket(self) -> tuple[float, float]:
        ratio = 1.0
        if self.used(()) <= 1:
            while ratio < _LARGEST and self.used(self.edits(2 * ratio)) <= 1:
                ratio *= 2
            # Where nothing limits the widths, the limits are on what they do not change.
            return ratio, 2 * ratio if ratio < _LARGEST else math.inf
        while ratio > _SMALLEST:  # in steps: where everything is rounded up to one channel, ties may not fit
            ratio /= 2
            if self.used(self.edits(ratio)) <= 1:
                return ratio, 2 * ratio
        stated = self.divisor.stated or 1
        raise BudgetError(
            f"no common ratio of widths meets {self.limits.describe()}"
            f"{' within the constraints' if self.architecture.constraints is not None else ''}"
            f"{f' with divisor {stated}' if stated > 1 else ''}; raise the budget or lower the divisor"
        )

    def regrown(self, edits: Sequence[Width], ratio: float) -> tuple[Width, ...]:
        """Spend what is left over on single groups, step by step."""
        widths = solved(self.architecture, edits)
        used = self.use(widths)
        while used < self.full:
            step = next(self._steps(widths, ratio, used), None)
            if step is None:
                break
            widths |= step
            used = self.use(widths)
        tied = [e for e in edits if e.target not in self.loose]  # they stay as they were
        free = [Width(n, widths[n]) for n, group in self.loose.items() if widths[n] != group.size]
        order = self.architecture.channels.index
        return tuple(sorted([*tied, *free], key=lambda e: order[e.target]))

    def _steps(self, widths: Widths, ratio: float, used: float) -> Iterator[Widths]:
        """Yield widenings of one group that fit, stay near the ratio and cost something, the furthest behind first."""
        weights = dict.fromkeys(self.loose, 1.0) if self.weights is None else self.weights
        shares = {name: ratio ** weights.get(name, 0.0) for name in self.loose}
        for name, group in sorted(
            self.loose.items(), key=lambda item: widths[item[0]] / item[1].size / shares[item[0]]
        ):
            step = multiple_of(group, self.divisor)
            near = math.ceil(group.size * shares[name] * _SPREAD) + step
            near = min(near, width_range(self.architecture.channels, group, self.divisor).most)
            wider = {name: (widths[name] // step + 1) * step}
            if wider[name] <= (min(near, group.size) if ratio < 1 else near) and used < self.use(widths | wider) <= 1:
                yield wider
