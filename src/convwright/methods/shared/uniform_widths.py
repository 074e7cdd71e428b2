"""The widest network within a budget when all widths share one ratio, or powers of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from convwright.cost.cost_model import CostModel
from convwright.edits import Width, scale_widths, solve
from convwright.edits.constraints import ENOUGH, Divisor, DivisorLike, levels_of, multiple_of, width_range
from convwright.errors import BudgetError, ConvwrightError, EditError

if TYPE_CHECKING:
    from convwright.architecture import Architecture, ChannelGroup
    from convwright.cost.budget import Limits

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


def uniform_widths(architecture: Architecture, limits: Limits, divisor: DivisorLike = 1) -> tuple[Width, ...]:
    """Scale all free groups by the largest common ratio that meets all limits.

    Whole channels leave some of the budget over. It is spent on single groups, those furthest below
    the common ratio first, so that the budget is met from below and used as well as possible.

    Args:
        architecture: The network.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this; ``auto``: the coarsest with which the budget can be used.

    Returns:
        One edit per group that changes.

    Raises:
        BudgetError: Even the smallest widths break a limit.
    """
    return weighted_widths(architecture, limits, divisor)


def weighted_widths(
    architecture: Architecture,
    limits: Limits,
    divisor: DivisorLike = 1,
    weights: Mapping[str, float] | None = None,
    fill: bool = True,
) -> tuple[Width, ...]:
    """Scale free groups by powers of the largest ratio that meets all limits: a group of weight w by ratio ** w.

    Args:
        architecture: The network.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this; ``auto``: the coarsest with which the budget can be used.
        weights: Weight by group name, from 0 (stays) to 1; groups left out stay. None: 1 for every group.
        fill: Spend what whole channels leave over on single groups. Without it, groups of one size and one weight
            stay equal.

    Returns:
        One edit per group that changes.

    Raises:
        BudgetError: No ratio meets the limits.
    """
    return finest_needed(levels_of(divisor), lambda level: _scaled(_Search(architecture, limits, level, weights), fill))


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


def _scaled(search: _Search, fill: bool) -> tuple[tuple[Width, ...], float]:
    ratio = search.largest_ratio()
    edits = search.edits(ratio)
    used = search.used(edits)
    regrown = search.regrown(edits, ratio) if fill else edits
    both = (regrown, search.used(regrown)) if fill else (edits, used)
    return both if both[1] <= 1 else (edits, used)


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
        self.original: Widths = {g.name: g.size for g in architecture.free_groups}
        self.loose = {g.name: g for g in architecture.free_groups if not g.tied}  # a tied one would take others along

    # ------------------------------------------------------------------ costs

    def widths(self, edits: Sequence[Width]) -> Widths:
        """Return the sizes of all free groups under the edits, tied groups included."""
        if not edits:
            return dict(self.original)
        graph = self.architecture.channels
        units = solve(self.architecture, edits).units
        return {name: int(units[graph.index[name]]) * graph.group(name).step for name in self.original}

    def use(self, widths: Mapping[str, int]) -> float:
        """Return the share of the tightest limit that is used; above 1 it is broken."""
        costs = self.limits.costs(self.model, widths)
        return max(costs[metric] / limit for metric, limit in self.limits.limits.items())

    def used(self, edits: Sequence[Width]) -> float:
        """Return `use` under the edits; infinite if they cannot be carried out together."""
        try:
            return self.use(self.widths(edits))
        except (EditError, BudgetError):  # such as a part of a tied group that would vanish
            return math.inf

    # ------------------------------------------------------------------ one ratio

    def edits(self, ratio: float) -> tuple[Width, ...]:
        """Return the edits for a common ratio."""
        ratios = ratio if self.weights is None else {name: ratio**weight for name, weight in self.weights.items()}
        return scale_widths(self.architecture, ratios, self.divisor, check=False)  # checked once, by the caller

    def share(self, group: ChannelGroup, ratio: float) -> float:
        """Return what a group is scaled by at a common ratio."""
        return ratio if self.weights is None else ratio ** self.weights.get(group.name, 0.0)

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
        if self.used(()) <= 1:
            return self._upwards()
        ratio = 1.0
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

    def _upwards(self) -> tuple[float, float]:
        low = 1.0
        while low < _LARGEST:
            if self.used(self.edits(2 * low)) > 1:
                return low, 2 * low
            low *= 2
        return low, math.inf  # nothing limits the widths: the limits are on what they do not change

    # ------------------------------------------------------------------ the rest of the budget

    def regrown(self, edits: Sequence[Width], ratio: float) -> tuple[Width, ...]:
        """Spend what is left over on single groups, step by step."""
        widths = self.widths(edits)
        used = self.use(widths)
        while used < self.full:
            step = next(self._steps(widths, ratio, used), None)
            if step is None:
                break
            widths |= step
            used = self.use(widths)
        return self._as_edits(widths, edits)

    def _steps(self, widths: Widths, ratio: float, used: float) -> Iterator[Widths]:
        """Yield widenings of one group that fit and cost something, the furthest behind first."""
        for group in sorted(self.loose.values(), key=lambda g: widths[g.name] / g.size / self.share(g, ratio)):
            wider = {group.name: widths[group.name] + self._step(group)}
            if wider[group.name] <= self._ceiling(group, ratio) and used < self.use(widths | wider) <= 1:
                yield wider

    def _step(self, group: ChannelGroup) -> int:
        return multiple_of(group, self.divisor)

    def _ceiling(self, group: ChannelGroup, ratio: float) -> int:
        """Return the largest width that still counts as near the common ratio."""
        near = math.ceil(group.size * self.share(group, ratio) * _SPREAD) + self._step(group)
        near = min(near, width_range(self.architecture.channels, group, self.divisor).most)
        return min(near, group.size) if ratio < 1 else near

    def _as_edits(self, widths: Widths, edits: Sequence[Width]) -> tuple[Width, ...]:
        """Return edits for the widths; those of tied groups stay as they were."""
        tied = [e for e in edits if e.target not in self.loose]
        free = [Width(n, widths[n]) for n in self.loose if widths[n] != self.original[n]]
        order = self.architecture.channels.index
        return tuple(sorted([*tied, *free], key=lambda e: order[e.target]))
