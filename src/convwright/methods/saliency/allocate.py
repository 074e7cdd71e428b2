"""Allocation: the widths and blocks that lose the least saliency within a budget, by the exact cost model.

Greedy: always narrow the group that loses least per cost saved, with costs counted anew after each step. Then what is
left of the budget is spent, and width is exchanged between two groups until nothing improves. Blocks are taken out one
after the other as long as the widths that this saves are worth more than the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convwright.cost.budget import MEASURED, Limits, parse_budget
from convwright.cost.cost_model import CostModel
from convwright.edits import RemoveBlock, Width
from convwright.edits.constraints import Constraints, Divisor, levels_of, width_range
from convwright.errors import BudgetError, ConvwrightError, EditError, did_you_mean
from convwright.methods.shared.uniform_widths import finest_needed, solved

if TYPE_CHECKING:
    from convwright.architecture import Architecture, ChannelGroup
    from convwright.edits import Edit
    from convwright.edits.constraints import ConstraintsLike, DivisorLike

Numbers = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST = 0.1  # of a group's channels stay where the budget can be met so: what nearly all are worth, no slope says
_STRIDES = (1, 2, 4, 8, 16)  # levels by which an exchange moves a group
_MANY = 40  # groups from which on only the first strides are tried: exchanges are of pairs
_ANEW = 0.05  # change of an estimated cost after which its slopes are estimated anew
_SWEEPS = 300  # exchanges at most


@dataclass(frozen=True)
class Allocation:
    """What a budget is spent on.

    Attributes:
        edits: one `RemoveBlock` per block that goes, then one `Width` per group that changes, with what it keeps.
        lost: saliency of what goes.
        use: share of the tightest limit that is used.
        divisor: what the widths are multiples of.
    """

    edits: tuple[Edit, ...]
    lost: float
    use: float
    divisor: Divisor


def allocate(
    arch: Architecture,
    scores: Mapping[str, npt.ArrayLike],
    budget: str | Sequence[str] | Limits,
    constraints: ConstraintsLike = None,
    *,
    divisor: DivisorLike = "auto",
    blocks: Mapping[str, float] | None = None,
) -> tuple[Edit, ...]:
    """Return the edits that meet a budget and lose the least.

    Args:
        arch: the network.
        scores: saliency per channel by group name, shape (units,), as `saliency` returns it; groups left out stay.
        budget: such as ``macs<=50%`` or ``["macs<=50%", "params<=1M"]``; or limits in numbers.
        constraints: of the user: `Constraints`, their fields or a YAML file; None: those that the network is bound to.
        divisor: of new widths: ``auto`` or a number.
        blocks: what whole blocks are worth in the unit of the scores, by name; None: all blocks stay.

    Returns:
        Edits for `Architecture.apply`; none where the network meets the budget as it is.

    Raises:
        BudgetError: no widths meet it.
        ConvwrightError: scores have the wrong shape, are not finite, or name no group; blocks are not the network's, or
            what they are worth is no number; the network is bound to constraints, and others are given.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> edits = cw.allocate(arch, cw.saliency(arch, kind="l2"), "macs<=50%")
        >>> arch.apply(*edits).profile().macs <= arch.profile().macs / 2
        True
    """
    if constraints is not None and arch.constraints is not None:
        raise ConvwrightError(f"{arch.source} is bound to constraints already: give all of them in one place")
    for name, worth in (blocks or {}).items():
        arch.block(name)
        if math.isnan(worth):
            raise ConvwrightError(f"what block {name} is worth is {worth}; give a number, or leave it out: it stays")
    bound = arch if constraints is None else Constraints.of(constraints).bound(arch)
    limits = budget if isinstance(budget, Limits) else parse_budget(budget).resolve(arch.profile())
    return allocation(bound, scores, limits, divisor=divisor, blocks=blocks).edits


def allocation(
    arch: Architecture,
    scores: Mapping[str, npt.ArrayLike],
    limits: Limits,
    *,
    divisor: DivisorLike = "auto",
    blocks: Mapping[str, float] | None = None,
    measured: bool = False,
) -> Allocation:
    """As `allocate`, with what was found out on the way.

    Args:
        arch: bound to the user's constraints.
        scores: as of `allocate`.
        limits: in numbers.
        divisor: as of `allocate`.
        blocks: as of `allocate`.
        measured: whether a limit on latency holds for what is chosen when it is measured, not only estimated; `limits`
            may then be for another network, such as one with all its blocks.
    """
    checked = _checked(arch, scores)
    best = (_fitted if measured else of_widths)(arch, checked, limits, Divisor.of(divisor))
    return best if not blocks or not best.edits else _without_blocks(arch, checked, limits, best, dict(blocks))


def of_widths(arch: Architecture, scores: Mapping[str, Numbers], limits: Limits, divisor: DivisorLike) -> Allocation:
    """Return the best widths; with finer multiples where those of ``auto`` leave too much of the budget over."""

    def found(level: Divisor) -> tuple[Allocation, float]:
        best = _Search(arch, scores, limits, level).run()
        return best, best.use if best.edits else 1.0

    return finest_needed(levels_of(divisor), found)


def _without_blocks(
    arch: Architecture, scores: Mapping[str, Numbers], limits: Limits, best: Allocation, worth: Mapping[str, float]
) -> Allocation:
    """Take blocks out, the one with most costs for its worth first, while less is lost in all."""
    shares, gone, spent, present = _shares(arch, limits), list[RemoveBlock](), 0.0, arch
    for name in sorted(worth, key=lambda block: worth[block] / max(shares.get(block, 0.0), 1e-12)):
        if spent + worth[name] >= best.lost:
            break
        try:
            smaller = present.apply(RemoveBlock(name), verify=False)
        except EditError:
            continue
        present, spent = smaller, spent + worth[name]
        gone.append(RemoveBlock(name))
        try:
            tried = _fitted(present, scores, limits, best.divisor)
        except BudgetError:
            continue
        if spent + tried.lost >= best.lost:
            break
        best = replace(tried, edits=(*gone, *tried.edits), lost=spent + tried.lost)
    return best


def _shares(arch: Architecture, limits: Limits) -> dict[str, float]:
    """Return the share of the costs that the layers of each block have; MACs stand for what is not counted by layer."""
    profile = arch.profile()
    params = bool(limits.limits) and all(metric in ("params", "weights") for metric in limits.limits)
    costs = {layer.name: layer.params if params else layer.macs for layer in profile.layers}
    total = max(1, sum(costs.values()))
    return {block.name: sum(costs.get(layer, 0) for layer in block.layers) / total for block in arch.blocks}


def _fitted(arch: Architecture, scores: Mapping[str, Numbers], limits: Limits, divisor: Divisor) -> Allocation:
    """Return the best widths of a network with fewer blocks, whose latency is measured where it is limited."""
    free = {group.name for group in arch.free_groups}
    kept = {name: values for name, values in scores.items() if name in free}

    def choose(within: Limits) -> tuple[Architecture, Mapping[str, int]]:
        edits = of_widths(arch, kept, within, divisor).edits
        return arch.apply(*edits, verify=False), solved(arch, [edit for edit in edits if isinstance(edit, Width)])

    return of_widths(arch, kept, limits.fitted(arch, choose), divisor)


def _checked(arch: Architecture, scores: Mapping[str, npt.ArrayLike]) -> dict[str, Numbers]:
    known = {group.name: group.units for group in arch.groups}
    found = {}
    for name, values in scores.items():
        array = np.asarray(values, dtype=np.float64)
        if name not in known:
            raise ConvwrightError(f"the scores name {name!r}, which is no channel group.{did_you_mean(name, known)}")
        if array.shape != (known[name],) or not np.isfinite(array).all():
            what = f"of shape {array.shape}" if array.shape != (known[name],) else "not finite"
            raise ConvwrightError(f"the scores of {name} are {what}; give {known[name]} numbers, one per channel")
        found[name] = array
    return found


# ------------------------------------------------------------------ widths


@dataclass(frozen=True, eq=False)
class _Family:
    """Groups whose widths move together, level by level down from the present widths.

    Attributes:
        columns: the groups' columns of the cost model.
        sizes: their widths, shape (levels, groups).
        lost: the saliency lost at each level, shape (levels,).
    """

    columns: Ints
    sizes: Ints
    lost: Numbers


def _families(arch: Architecture, scores: Mapping[str, Numbers], divisor: Divisor, least: float) -> list[_Family]:
    """Return what can be narrowed: groups by themselves, or all that are tied to each other."""
    column = {group.name: place for place, group in enumerate(arch.free_groups)}
    found, done = [], set[str]()
    for group in arch.free_groups:
        names = (group.name, *group.tied)
        if group.name in done or not all(name in column and name in scores for name in names):
            continue
        done.update(names)
        groups = [arch.channels.group(name) for name in names]
        sizes = _levels(arch, groups, divisor, least)
        lost = np.zeros(len(sizes))
        for each, widths in zip(groups, sizes.T, strict=True):
            worth = np.append(0.0, np.cumsum(np.sort(scores[each.name])))
            lost += worth[each.units - widths // each.step]
        if len(sizes) > 1:
            found.append(_Family(np.array([column[name] for name in names]), sizes, lost))
    return found


def _levels(arch: Architecture, groups: Sequence[ChannelGroup], divisor: Divisor, least: float) -> Ints:
    """Return the widths that groups can have together, the present ones first, shape (levels, groups)."""
    ranges = [width_range(arch.channels, group, divisor) for group in groups]
    sizes, steps = (np.array([getattr(group, name) for group in groups]) for name in ("size", "step"))
    parts = int(np.gcd.reduce(sizes // steps))  # tied groups stay in proportion
    table = np.arange(parts - 1, 0, -1)[:, None] * (sizes // parts)
    low = np.array([max(r.least, least * g.size) for r, g in zip(ranges, groups, strict=True)])
    high, multiples = np.array([r.most for r in ranges]), np.array([r.multiple for r in ranges])
    within = ((table >= low) & (table <= high)).all(axis=1)
    liked = within & (table % multiples == 0).all(axis=1)
    return np.concatenate([sizes[None], table[liked if liked.any() or len(groups) == 1 else within]])


class _Costs:
    """Costs over their limits for many choices of widths: counted exactly, or estimated.

    An estimate that tells those of many widths at once (``many``) is asked; of others, slopes are kept fresh.
    """

    def __init__(self, arch: Architecture, limits: Limits) -> None:
        self.model, self.limits = CostModel.of(arch), limits
        self.counted = [metric for metric in limits.limits if metric not in MEASURED]
        self.estimate = next((limits.estimates[m] for m in limits.limits if m in limits.estimates), None)
        many = getattr(self.estimate, "many", lambda widths: None)
        self.many = many if many(self.model.sizes[None]) is not None else None
        self.sloped = self.estimate is not None and self.many is None
        self.anchor, self.base, self.slopes = self.model.sizes, 0.0, np.zeros(len(self.model.sizes))

    def over(self, widths: Ints) -> Numbers:
        """Return each cost over its limit, (n, groups) -> (n, limits); estimates by their slopes."""
        columns = self.model.costs(widths, self.counted) if self.counted else {}
        estimated = self.base + (widths - self.anchor) @ self.slopes if self.many is None else self.many(widths)
        found = [np.asarray(columns.get(m, estimated)) / limit for m, limit in self.limits.limits.items()]
        return np.stack(found, axis=1)

    def exact(self, widths: Ints) -> float:
        """Return the share of the tightest limit that widths (groups,) use; infinite where they do not fit together."""
        try:
            costs = self.limits.costs(self.model, dict(zip(self.model.groups, widths.tolist(), strict=True)))
        except BudgetError:
            return float("inf")
        return max(costs[metric] / limit for metric, limit in self.limits.limits.items())

    def refresh(self, widths: Ints, narrower: Sequence[Ints], force: bool = False) -> None:
        """Estimate anew what channels take, where the estimate has moved since.

        Args:
            widths: the present ones, (groups,).
            narrower: the same with one family narrower.
            force: anew in any case.
        """
        if not self.sloped:
            return
        moved = abs((widths - self.anchor) @ self.slopes)
        if self.base and not force and moved <= _ANEW * self.base:
            return
        self.anchor, self.base, self.slopes = widths, self._estimated(widths), np.zeros(len(widths))
        for row in narrower:
            less = widths - row
            self.slopes[less > 0] = max(self.base - self._estimated(row), 0.0) / max(1, less.sum())

    def _estimated(self, widths: Ints) -> float:
        assert self.estimate is not None
        return float(self.estimate(dict(zip(self.model.groups, widths.tolist(), strict=True))))


class _Search:
    """The search for widths with one divisor: a level per family, from 0, the present widths."""

    def __init__(self, arch: Architecture, scores: Mapping[str, Numbers], limits: Limits, divisor: Divisor) -> None:
        self.arch, self.scores, self.limits, self.divisor = arch, scores, limits, divisor
        self.costs = _Costs(arch, limits)

    def run(self) -> Allocation:
        """Return the best widths.

        Raises:
            BudgetError: none meet the limits.
        """
        for least in (_LEAST, 0.0):
            self.families = _families(self.arch, self.scores, self.divisor, least)
            self.levels = np.zeros(len(self.families), dtype=np.int64)
            self._last = np.array([len(family.sizes) - 1 for family in self.families], dtype=np.int64)
            if self._shrunk():
                break
        else:
            stated = self.divisor.stated
            multiples, lower = (f" in multiples of {stated}", "lower the divisor, ") if stated else ("", "")
            raise BudgetError(
                f"no widths{multiples} meet {self.limits.describe()}; raise the budget, {lower}or constrain less"
            )
        for _ in range(_SWEEPS if self.levels.any() else 0):
            if not self._improved():
                break
        lost, use = float(self._lost(self.levels[None])[0]), self.costs.exact(self._widths(self.levels[None])[0])
        return Allocation(self._edits(), lost, use, self.divisor)

    def _widths(self, levels: Ints) -> Ints:
        """Return widths, (n, families) -> (n, groups)."""
        widths = np.repeat(self.costs.model.sizes[None], len(levels), axis=0)
        for place, family in enumerate(self.families):
            widths[:, family.columns] = family.sizes[levels[:, place]]
        return widths

    def _lost(self, levels: Ints) -> Numbers:
        """Return the saliency lost, (n, families) -> (n,)."""
        lost = [family.lost[levels[:, place]] for place, family in enumerate(self.families)]
        return np.sum(lost, axis=0) if lost else np.zeros(len(levels))

    def _refresh(self, force: bool = False) -> None:
        if self.costs.sloped:
            steps = np.minimum(np.maximum(1, self._last // 8), self._last - self.levels)
            narrower = self._widths(self.levels + np.diag(steps))[steps > 0]
            self.costs.refresh(self._widths(self.levels[None])[0], list(narrower), force)

    # -------------------------------------------------------------- greedy

    def _shrunk(self) -> bool:
        """Narrow until the limits hold; return whether they do."""
        # An estimate may rise where a width is no multiple of what kernels like: then only a longer step saves.
        strides = _STRIDES[:1] if self.costs.many is None else _STRIDES
        steps = np.concatenate([stride * np.eye(len(self.families), dtype=np.int64) for stride in strides])
        while True:
            self._refresh()
            widths = self._widths(self.levels[None])
            now = self.costs.over(widths)[0]
            if (now <= 1).all():
                if self.costs.estimate is None or self.costs.exact(widths[0]) <= 1:
                    return True
                self._refresh(force=True)
                now = self.costs.over(widths)[0]
            tried = (self.levels + steps)[(self.levels + steps <= self._last).all(axis=1)]
            if not len(tried):  # slopes may say more than the estimate itself
                return self.costs.estimate is not None and self.costs.exact(widths[0]) <= 1
            saved = np.minimum(now - self.costs.over(self._widths(tried)), np.maximum(now - 1, 0)).sum(axis=1)
            lost = self._lost(tried) - self._lost(self.levels[None])
            # Where no single step saves, as with memory that several tensors hold, the one that loses least.
            price = np.where(saved > 0, lost / np.maximum(saved, 1e-300), np.inf) if (saved > 0).any() else lost
            self.levels = tried[np.lexsort((-saved, price))[0]]

    # -------------------------------------------------------------- exchanges

    def _improved(self) -> bool:
        """Widen one family, or one at another's cost, so that less is lost; return whether that was possible."""
        self._refresh()
        tried = self._exchanges()
        better = self._lost(tried) - self._lost(self.levels[None])
        order = np.argsort(better, kind="stable")[: int((better < -1e-12 * abs(better).max(initial=0)).sum())]
        for chunk in np.array_split(order, max(1, len(order) // 4096)):
            widths = self._widths(tried[chunk])
            fitting = np.flatnonzero((self.costs.over(widths) <= 1).all(axis=1)) if len(chunk) else ()
            for place in fitting[: 1 if self.costs.estimate is None else 4]:
                if self.costs.estimate is None or self.costs.exact(widths[place]) <= 1:
                    self.levels = tried[chunk[place]]
                    return True
        return False

    def _exchanges(self) -> Ints:
        """Return the levels of all exchanges: one family up by some strides, and none or one down."""
        count = len(self.families)
        unit = np.eye(count, dtype=np.int64)
        strides = _STRIDES[:2] if count > _MANY else _STRIDES
        ups = [-stride * unit for stride in strides]
        downs = [np.zeros((1, count), dtype=np.int64), *(stride * unit for stride in strides)]
        moves = (np.concatenate(downs)[:, None] + np.concatenate(ups)[None]).reshape(-1, count)
        tried = self.levels + moves
        valid = ((tried >= 0) & (tried <= self._last)).all(axis=1)
        return tried[valid]

    def _edits(self) -> tuple[Width, ...]:
        """Return one edit per family that changes, with the channels that stay in all its groups."""
        groups, found = self.arch.free_groups, []
        for family, level in zip(self.families, self.levels.tolist(), strict=True):
            if not level:
                continue
            keep = {}
            for column, width in zip(family.columns.tolist(), family.sizes[level].tolist(), strict=True):
                group = groups[column]
                best = np.argsort(-self.scores[group.name], kind="stable")[: width // group.step]
                keep[group.name] = np.sort(best).tolist()
            found.append(Width(groups[family.columns[0]].name, int(family.sizes[level][0]), keep))
        return tuple(found)
