"""The two courses of a channel search: the published one, and ours along a budget's surface.

A walk says which widths to try next (``widths``) and from which trial's weights (``parent``), and is told what a trial
showed (``take``), or that it failed (``back``). It draws from its own seeded generator and depends on nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from convwright.methods.channel_search.updates import Need, annealed, metropolis, momentum, pulled, resized, temperature
from convwright.methods.shared.width_surface import FULL, Place, Surface, Widths

if TYPE_CHECKING:
    from convwright.methods.base import Evidence
    from convwright.methods.channel_search.readings import Reading
    from convwright.methods.channel_search.search import ChannelOptions

Rule = Literal["greedy", "annealing"]

_TRACKED = 6  # the published code keeps the best widths from this trial on, counted from 1
_RAMP = 3  # a tiny start reaches the budget after one in so many of the trials


@dataclass(frozen=True)
class Verdict:
    """What a walk made of a trial: whether it goes on from there, why, and how far chance reached."""

    accepted: bool
    words: str
    heat: float = 0.0


@dataclass(eq=False)
class Published:
    """CONetV2's course, number by number.

    Attributes:
        surface: The network's widths.
        start: First widths by family.
        given: Options of the search: trials, step, and gamma, the decay of the momentum, which is not normalised.
        rule: ``annealing``: groups are widened further by chance.
        seed: Of the draws.
        limited: Whether only widths within the limits are kept. Published: no.
    """

    surface: Surface
    start: Widths
    given: ChannelOptions
    rule: Rule
    seed: int
    limited: bool

    def __post_init__(self) -> None:
        self.widths: Widths = dict(self.start)
        self.parent: int | None = None
        self._random = random.Random(self.seed)
        self._momentum: dict[str, float] = {}
        self._taken = 0
        self._last: Widths | None = None
        self._kept: dict[bool, tuple[float, int, Widths]] = {}  # by whether the published code looks already

    def take(self, _: int, seen: Reading) -> Verdict:
        """Take in a trial: update the momentum, then every width; keep the best from trial 6 on."""
        tried, turn = self.widths, self._taken + 1  # the published number of the trial that comes next
        if turn >= self.given.trials:
            self._last, self.parent = tried, seen.evidence.trial
            return Verdict(True, "the last trial's qualities are not read, as published")
        after = momentum(self._momentum, seen.families, self.given.gamma)
        heat = temperature(turn, self.given.trials)
        if turn == 1:
            wanted = {name: width + self.given.step for name, width in tried.items()}
            words = f"all widths + {self.given.step}"
        else:
            deltas = {name: after[name] - self._momentum[name] for name in tried}
            wanted, words = self._updated(tried, deltas, heat)
        kept = self._track(turn, seen, after, tried)
        self._momentum, self._taken, self._last, self.parent = after, turn, tried, seen.evidence.trial
        self.widths = self._possible(wanted, tried)
        return Verdict(True, words + kept, heat if self.rule == "annealing" else 0.0)

    def _updated(self, tried: Widths, deltas: Mapping[str, float], heat: float) -> tuple[Widths, str]:
        kicked = dict(deltas)
        if self.rule == "annealing":
            kicked = {name: annealed(delta, heat, self._random.random()) for name, delta in deltas.items()}
        up = sum(kicked[name] > deltas[name] for name in deltas)
        bounds = {f.name: (f.least, f.most) for f in self.surface.families}
        words = f"change of momentum {min(deltas.values()):+.4f} to {max(deltas.values()):+.4f}"
        if up:
            words += f", {up} of {len(deltas)} groups widened by chance at temperature {heat:.3f}"
        return {name: resized(width, kicked[name], *bounds[name]) for name, width in tried.items()}, words

    def _track(self, turn: int, seen: Reading, after: Mapping[str, float], tried: Widths) -> str:
        """Keep the widths with the highest accumulated quality."""
        total, looks = sum(after.values()) / len(after), turn >= _TRACKED
        if (self.limited and self.surface.use(tried) > 1) or (looks in self._kept and total <= self._kept[looks][0]):
            return ""
        self._kept[looks] = total, seen.evidence.trial, tried
        return f"; best so far, accumulated quality {total:.4f}" if looks else ""

    def _possible(self, wanted: Widths, tried: Widths) -> Widths:
        """Round to what groups can have; tied groups that do not fit together stay as they are."""
        rounded = {f.name: f.rounded(wanted[f.name]) for f in self.surface.families}
        if self.surface.carried_out(rounded):
            return rounded
        return {f.name: tried[f.name] if f.tied else rounded[f.name] for f in self.surface.families}

    def back(self) -> None:
        """Try the last widths again."""
        self.widths = self._last or self.widths

    def chosen(self) -> tuple[Widths, str] | None:
        """Return the best widths from trial 6 on; where there are none, the best before, and at last the last ones."""
        if self._kept:
            total, trial, widths = self._kept[max(self._kept)]
            note = "" if True in self._kept else f"; the published search keeps none before trial {_TRACKED}"
            return widths, f"the widths of trial {trial}, with the highest accumulated quality {total:.4f}{note}"
        if self._last is None or (self.limited and self.surface.use(self._last) > 1):
            return None
        return self._last, "the only widths that were tried"


@dataclass(frozen=True)
class _Spot:
    """An accepted trial: where it was and what is known there."""

    place: Place
    need: Need
    evidence: Evidence
    share: float  # of the budget that it was allowed

    @property
    def words(self) -> str:
        return f"{self.evidence.metric.score(self.evidence.score):.4f}"

    @property
    def whole(self) -> bool:
        """Whether it was allowed the whole budget."""
        return self.share >= 1


@dataclass(eq=False)
class OnBudget:
    """Our course: widths answer the data, the budget sets the size.

    Attributes:
        surface: The network's widths and the budget.
        start: First widths by family. Where they use less than the budget, its share grows geometrically to the
            whole over the first third of the trials; else they are scaled to it.
        given: Options of the search: trials, gamma, temperature.
        rule: ``annealing``: widths are shaken and losing trials may be rejected.
        spread: A width may be so many times what one common ratio of the start would give, or one over it.
        seed: Of the draws.
    """

    surface: Surface
    start: Widths
    given: ChannelOptions
    rule: Rule
    spread: float
    seed: int

    def __post_init__(self) -> None:
        self.base = {name: float(width) for name, width in self.start.items()}
        self.first = min(self.surface.use(self.start), 1.0)
        self.parent: int | None = None
        self._at: _Spot | None = None
        self._best: _Spot | None = None
        self._share = self.share(0)
        self._next = self.surface.project(self.base, self._share)

    @property
    def widths(self) -> Widths:
        """What to try next."""
        return self._next.widths

    def share(self, turn: int) -> float:
        """Return the share of the budget that a trial may use."""
        ramp = math.ceil(self.given.trials / _RAMP)
        return 1.0 if turn >= ramp or self.first >= FULL else float(self.first ** (1 - turn / ramp))

    def cold(self, turn: int) -> float:
        """Return what is left of the temperature: 1 at the first trial, 1 / trials at the last."""
        return (self.given.trials - turn) / self.given.trials

    def take(self, turn: int, seen: Reading) -> Verdict:
        """Accept or reject a trial, and propose the next from the accepted one."""
        rng = np.random.default_rng([self.seed, turn])
        spot = self._spot(seen)
        verdict = self._judged(spot, turn, float(rng.random()))
        if verdict.accepted:
            self._at, self.parent = spot, seen.evidence.trial
            if spot.whole and (self._best is None or spot.evidence.score >= self._best.evidence.score):
                self._best = spot
        assert self._at is not None
        noise = rng.standard_normal(len(self.base)).tolist() if self.rule == "annealing" else None
        self._propose(self._at, turn, noise)
        return verdict

    def _spot(self, seen: Reading) -> _Spot:
        known = self._at.need if self._at is not None else Need({})
        answers = any(value > 0 for value in seen.families.values())
        need = known.joined(self._next.shape, seen.families, self.given.gamma) if answers else known
        return _Spot(self._next, need, seen.evidence, self._share)

    def _judged(self, spot: _Spot, turn: int, draw: float) -> Verdict:
        here = self._at
        if here is None:
            return Verdict(True, "accepted, the first")
        if self.rule == "greedy":
            return Verdict(True, "accepted, as every trial of rule greedy")
        if not (spot.whole and here.whole):
            return Verdict(True, "accepted, the share of the budget still grows")
        new, old = spot.evidence, here.evidence
        heat = self.given.temperature * self.cold(turn) * math.hypot(new.stderr, old.stderr)
        chance = metropolis(old.score - new.score, heat)
        numbers = f"{new.metric.name} {spot.words} against {here.words} of trial {old.trial}"
        accepted = draw < chance
        likely = f" with probability {chance:.3f}" if chance < 1 else ""
        return Verdict(accepted, f"{'accepted' if accepted else 'rejected'}{likely}: {numbers}", heat)

    def _propose(self, at: _Spot, turn: int, noise: list[float] | None) -> None:
        """Move from an accepted trial along its pull, and project to the next trial's share of the budget."""
        share = self.share(turn + 1)
        pull = at.need.pull(at.place.shape) if at.need.weight else {}
        if any(pull.values()):
            shaken = dict(zip(self.base, noise, strict=True)) if noise is not None else None
            wanted = self._leashed(pulled(at.place.shape, pull, self.cold(turn), shaken))
            self._next = self.surface.project(wanted, share)
        elif share != self._share or at.place.use > share:
            self._next = self.surface.project(at.place.shape, share)
        else:
            self._next = at.place
        self._share = share

    def _leashed(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """Hold widths within `spread` of the start's proportions."""
        logs = {name: math.log(wanted[name] / self.base[name]) for name in wanted}
        middle, reach = sum(logs.values()) / len(logs), math.log(self.spread)
        return {
            name: self.base[name] * math.exp(min(max(value, middle - reach), middle + reach))
            for name, value in logs.items()
        }

    def back(self) -> None:
        """Try the widths of the last accepted trial again."""
        if self._at is not None:
            self._next, self._share = self._at.place, self._at.share

    def chosen(self) -> tuple[Widths, str] | None:
        """Return the widths on the whole budget that the search ends with."""
        if self._at is None:
            return None
        if self.rule == "annealing" and (best := self._best) is not None:
            metric = best.evidence.metric
            told = f"accepted with the {metric.best} {metric.name} {best.words}"
            return best.place.widths, f"the widths of trial {best.evidence.trial}, {told}"
        place = self._next if self._share >= 1 else self.surface.project(self._next.shape)
        return place.widths, f"the widths that follow from trial {self._at.evidence.trial}"
