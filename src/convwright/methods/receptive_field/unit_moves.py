"""How units move between stages: greedily, or up to a budget.

The moves of the stage-level organizer (``receptive_field.py``), whose rule is reconstructed; ``spend`` and the options
of ``Rule`` beyond ``conservative`` are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from convwright.cost.budget import human
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.receptive_field.stage_units import UnitCost, Units, UnitStage
from convwright.metrics.receptive_field.analysis import Score, score

Mode = Literal["greedy", "spend"]
Counts = tuple[int, ...]
_NOTHING = 1e-12  # gains below it are rounding


@dataclass(frozen=True)
class Rule:
    """How units are moved.

    Attributes:
        mode: ``greedy``: the best move of one unit, again and again. ``spend``: units that see
            nothing new go, then units come where their gain per cost is highest, up to limits; where none fits, one is
            moved, and so on.
        score: what is raised: the ``sum`` (or ``mean``) of the stages' shares; the sum of their ``log``, to which
            early stages with their small shares matter as much as late ones; or the mean logarithm over all
            ``positions`` of all stages' maps, to which early stages with their large maps matter most.
        conservative: a stage gives away only units without any gain.
        per_cost: moves are ranked by gain per cost instead of by gain.
        macs_tolerance: MACs may grow by this part; infinity: by any. Not used where limits are given.
        params_tolerance: the same for parameters.

    Raises:
        ConvwrightError: a value is out of range, or two do not go together.
    """

    mode: Mode = "greedy"
    score: Score = "sum"
    conservative: bool = False
    per_cost: bool = False
    macs_tolerance: float = 0.2
    params_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConvwrightError(f"mode is one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        if self.score not in get_args(Score):
            raise ConvwrightError(f"score is one of {', '.join(get_args(Score))}, not {self.score!r}")
        for name in ("macs_tolerance", "params_tolerance"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ConvwrightError(f"{name} is a number from 0 on, not {value!r}")


@dataclass(frozen=True)
class Move:
    """One step of the organizer.

    Attributes:
        donor: the stage that loses a unit; empty if none does.
        receiver: the stage that gets one; empty if none does.
        loss: what the donor's last unit had gained.
        gain: what the receiver's new unit gains.
        before: units of each stage.
        after: units of each stage after it.
        shares: rho of the donor and the receiver, before and after.
        score: Q after it.
        cost: MACs and parameters after it.
    """

    donor: str
    receiver: str
    loss: float
    gain: float
    before: Counts
    after: Counts
    shares: Mapping[str, tuple[float, float]]
    score: float
    cost: UnitCost

    def __str__(self) -> str:
        alone = f"{self.donor} loses a unit" if self.donor else f"{self.receiver} gets a unit"
        told = f"{self.donor} gives {self.receiver} a unit" if self.donor and self.receiver else alone
        shares = "; ".join(_share_said(name, *ends) for name, ends in self.shares.items())
        costs = f"{human(self.cost.macs)} MACs, {human(self.cost.params, 'params')} parameters"
        return f"{told}: {shares}. Q is {self.score:.3f} now, at {costs}."


def _share_said(stage: str, before: float, after: float) -> str:
    if abs(after - before) < _NOTHING:
        return f"{stage} goes on seeing {after:.1%} of its input, so that unit saw nothing new"
    return f"{stage} sees {after:.1%} of its input instead of {before:.1%}"


@dataclass(frozen=True, eq=False)
class Desk:
    """One organization in the making: the stages, the rule, and what is allowed."""

    units: Units
    rule: Rule
    base: UnitCost
    limits: Mapping[str, int]

    def rated(self, stage: UnitStage, count: int) -> float:
        """Return what a stage contributes to Q with this many units."""
        alone = score((stage.share(count),), self.rule.score, (stage.part.map_size,))
        return alone * self.weight(stage)

    def weight(self, stage: UnitStage) -> float:
        """Return the part that a stage has in Q, where Q is a mean."""
        if self.rule.score == "mean":
            return 1 / (len(self.units.rest) + len(self.units.stages))
        return stage.part.map_size / sum(self.positions) if self.rule.score == "positions" else 1.0

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of all output maps, those of stages without units first."""
        return (*self.units.rest_positions, *(stage.part.map_size for stage in self.units.stages))

    def q(self, counts: Counts) -> float:
        """Return Q of a distribution, stages without units included."""
        shares = [stage.share(n) for stage, n in zip(self.units.stages, counts, strict=True)]
        return score((*self.units.rest, *shares), self.rule.score, self.positions)

    def cost(self, counts: Counts) -> UnitCost:
        """Return the costs of the network with a distribution."""
        more = self.units.costs(counts)
        return UnitCost(self.base.macs + more.macs, self.base.params + more.params)

    def fits(self, counts: Counts) -> bool:
        """Whether a distribution keeps the limits."""
        cost = self.cost(counts)
        return all(getattr(cost, metric) <= limit for metric, limit in self.limits.items())

    def use(self, cost: UnitCost) -> float:
        """Return the share of the tightest limit that a cost is."""
        return max((float(getattr(cost, m) / max(limit, 1)) for m, limit in self.limits.items()), default=0.0)

    def gain(self, number: int, count: int) -> float:
        """Return what the next unit of a stage gains."""
        stage = self.units.stages[number]
        return self.rated(stage, count + 1) - self.rated(stage, count)

    def moved(self, counts: Counts, donor: int | None, receiver: int | None) -> Move:
        """Return a move as a record."""
        after, stages = _shifted(counts, donor, receiver), self.units.stages
        both = [i for i in (donor, receiver) if i is not None]
        shares = {stages[i].name: (stages[i].share(counts[i]), stages[i].share(after[i])) for i in both}
        gives, gets = ("" if i is None else stages[i].name for i in (donor, receiver))
        loss = self.gain(donor, after[donor]) if donor is not None else 0.0
        gain = self.gain(receiver, counts[receiver]) if receiver is not None else 0.0
        return Move(gives, gets, loss, gain, counts, after, shares, self.q(after), self.cost(after))


# ------------------------------------------------------------------ greedy


def _greedy(desk: Desk) -> tuple[list[Move], Counts, str]:
    """Make the best move of one unit until none gains."""
    counts, moves = desk.units.counts, []
    while found := _best_move(desk, counts):
        moves.append(found)
        counts = found.after
    if not desk.fits(counts):
        raise BudgetError(
            f"no single move from {list(counts)} units per stage keeps the limits ({_over(desk, counts)}). "
            "Use mode 'spend', which may drop units, or give a larger budget."
        )
    return moves, counts, "No other move of one unit gains more than it loses and keeps the limits."


def _best_move(desk: Desk, counts: Counts) -> Move | None:
    """Return the allowed move with the largest net gain; of equal ones the latest receiver, then earliest donor."""
    best: tuple[tuple[float, int, int], int, int] | None = None
    for receiver, donor in _pairs(desk, counts):
        loss, gain = desk.gain(donor, counts[donor] - 1), desk.gain(receiver, counts[receiver])
        if gain - loss <= _NOTHING or (desk.rule.conservative and loss > _NOTHING):
            continue
        if not desk.fits(_shifted(counts, donor, receiver)):
            continue
        rank = gain - loss
        if desk.rule.per_cost:
            rank = gain / _unit_use(desk, receiver, counts[receiver]) - loss / _unit_use(desk, donor, counts[donor] - 1)
        key = (round(rank, 12), receiver, -donor)
        if best is None or key > best[0]:
            best = (key, donor, receiver)
    return desk.moved(counts, best[1], best[2]) if best else None


def _pairs(desk: Desk, counts: Counts) -> Iterator[tuple[int, int]]:
    stages = desk.units.stages
    for receiver, stage in enumerate(stages):
        if stage.allows(counts[receiver] + 1):
            for donor, other in enumerate(stages):
                if donor != receiver and other.allows(counts[donor] - 1):
                    yield receiver, donor


def _shifted(counts: Counts, donor: int | None, receiver: int | None) -> Counts:
    return tuple(n - (i == donor) + (i == receiver) for i, n in enumerate(counts))


def _unit_use(desk: Desk, number: int, count: int) -> float:
    """Return the share of the tightest limit that the unit after ``count`` units of a stage takes."""
    stage = desk.units.stages[number]
    more, now = stage.cost_of(count + 1), stage.cost_of(count)
    return max(desk.use(UnitCost(more.macs - now.macs, more.params - now.params)), _NOTHING)


# ------------------------------------------------------------------ spend


def _spend(desk: Desk) -> tuple[list[Move], Counts, str]:
    """Drop units that see nothing new, and more until the limits hold; then add where gain per cost is highest.

    Where no unit fits any more, one is moved if that gains, and adding goes on with what this leaves.
    """
    counts, moves = desk.units.counts, []
    while (move := _dropped(desk, counts)) is not None:
        moves.append(move)
        counts = move.after
    if not desk.fits(counts):
        raise BudgetError(
            f"moving units cannot keep the limits: the nearest that it reaches is {list(counts)} units per stage with "
            f"{_over(desk, counts)}. Give a larger budget, or narrow the network as well."
        )
    while (move := _added(desk, counts) or _best_move(desk, counts)) is not None:
        moves.append(move)
        counts = move.after
    full = any(
        stage.allows(counts[i] + 1) and desk.gain(i, counts[i]) > _NOTHING for i, stage in enumerate(desk.units.stages)
    )
    fit = "no other unit fits the limits, and no move gains"
    why = fit if full else "every stage that can grow sees its whole input"
    return moves, counts, f"It ends there since {why}."


def _dropped(desk: Desk, counts: Counts) -> Move | None:
    """Return the drop with the least loss per saved cost, if the limits are broken or it loses nothing."""
    fits = desk.fits(counts)
    ranked = []
    for donor, stage in enumerate(desk.units.stages):
        if stage.allows(counts[donor] - 1):
            loss = desk.gain(donor, counts[donor] - 1)
            if loss <= _NOTHING or (not fits and not desk.rule.conservative):
                ranked.append((loss / _unit_use(desk, donor, counts[donor] - 1), -donor))
    return desk.moved(counts, -min(ranked)[1], None) if ranked else None


def _added(desk: Desk, counts: Counts) -> Move | None:
    """Return the addition with the highest gain per cost that keeps the limits."""
    ranked = []
    for receiver, stage in enumerate(desk.units.stages):
        if stage.allows(counts[receiver] + 1) and desk.fits(_shifted(counts, None, receiver)):
            gain = desk.gain(receiver, counts[receiver])
            if gain > _NOTHING:
                ranked.append((gain / _unit_use(desk, receiver, counts[receiver]), receiver))
    return desk.moved(counts, None, max(ranked)[1]) if ranked else None


def _over(desk: Desk, counts: Counts) -> str:
    cost = desk.cost(counts)
    return ", ".join(
        f"{m} {human(getattr(cost, m), m)} instead of {human(limit, m)}"
        for m, limit in desk.limits.items()
        if getattr(cost, m) > limit
    )


MODES: Mapping[Mode, Callable[[Desk], tuple[list[Move], Counts, str]]] = {
    "greedy": _greedy,
    "spend": _spend,
}
