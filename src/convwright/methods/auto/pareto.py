"""A search for several networks at once: as accurate as can be at each cost, from near the budget down to a third."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from pydantic import Field

from convwright.cost.budget import MEASURED, Limits, costs_of, feasible_range, human
from convwright.cost.counts import METRICS
from convwright.errors import BudgetError, ConvwrightError, EditError, did_you_mean
from convwright.methods.auto.design_search import DesignOptions, DesignSearch, Runner, Runners, quality_of, reasons
from convwright.methods.auto.designs import DesignBuilder, ProposedDesign
from convwright.methods.auto.proposals import neighbours, proposals
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.script import Batch, Script
from convwright.methods.shared.dominance import Point, chosen, crowding, fronts, knee, spread
from convwright.methods.shared.halving import Rung, rungs

if TYPE_CHECKING:
    from convwright.edits import Edit

_HALVING = 0.75  # share of the search's epochs that the race of the proposals gets; neighbours get the rest
_LEVELS = 4  # costs at which networks are proposed, each the one before over the square root of 2
_CELLS = 28  # costs within the 28th root of 2 (2.5%) count as equal: designs use up their level to about one per cent
_MOST = 64  # proposals
_CENTRES = 3  # networks around which a round tries neighbours
_COSTS = 2  # beside accuracy


_Members = tuple[Runner, ...]


def objective_costs(objective: str | Sequence[str]) -> tuple[str, ...]:
    """Return the costs of an objective, in the order given.

    Args:
        objective: ``"accuracy,macs"`` or the names one by one; accuracy is meant where it is left out.

    Raises:
        ConvwrightError: A name is unknown or comes twice, or there is no cost or are more than two.

    Examples:
        >>> objective_costs("accuracy,macs"), objective_costs(["params", "Accuracy", "macs"])
        (('macs',), ('params', 'macs'))
    """
    named = objective.split(",") if isinstance(objective, str) else objective
    names = [name.strip().lower() for name in named]
    known = ("accuracy", *METRICS, *MEASURED)
    for name in names:
        if name not in known:
            raise ConvwrightError(
                f"objective: {name!r} is unknown; give accuracy and one or two of {', '.join(known[1:])}, such as "
                f"accuracy,macs.{did_you_mean(name, known)}"
            )
        if names.count(name) > 1:
            raise ConvwrightError(f"objective: {name} comes twice; give it once")
    costs = tuple(name for name in names if name != "accuracy")
    if not 1 <= len(costs) <= _COSTS:
        said = f"{len(costs)} costs ({', '.join(costs)})" if costs else "no cost"
        raise ConvwrightError(f"objective: accuracy and one or two costs, such as accuracy,macs,params; here is {said}")
    return costs


class ParetoOptions(DesignOptions):
    """Options of method ``pareto``.

    Attributes:
        search_epochs: Epochs of all candidates before the final trainings; None: 16 times `tune_epochs`.
        eta: One in so many goes on.
        rounds: Rounds of neighbours at most.
        objective: One or two of macs, params, activations, weights and, where the budget limits it, latency.
        points: How many networks are trained to the end; fewer where the front has fewer.
    """

    objective: str | Sequence[str] = ("macs",)
    points: int = Field(4, ge=2)


@register("pareto")
class ParetoSearch(DesignSearch):
    """Finds networks of which none is beaten in accuracy and cost at once, and trains a few of them to the end.

    1. The untouched network is trained, and read as `Auto` does.
    2. What `Auto` proposes is proposed at several costs: the budget (without one on the first cost, the
       network's own cost), and this over 1.41, 2 and 2.83. So the first population lies along the front.
    3. Successive halving as in `Auto`; those that go on are chosen as in NSGA-II (Deb et al. 2002), by non-dominated
       sorting and crowding distance. Costs count as equal within 2.5 per cent, so that a network is not kept for a
       cost that is lower by a rounding.
    4. Around the members of the front that are farthest from the others, neighbours are tried, each at its own cost.
       All are trained on as long, and the population is chosen anew.
    5. `points` members of the front, far from each other and its ends always, are trained to the end, and beside them
       the untouched network for as many epochs as each of them had after the first training.

    The result is the most accurate of these within the budget. Without a budget it is the knee of the front:
    `convwright.methods.shared.dominance.knee`, with costs as logarithms.

    Attributes:
        decisions: What was decided so far.
        objective: The costs.
        left: Epochs that the search has left.

    Raises:
        BudgetError: No proposal meets the limits.
        ConvwrightError: The network has nothing that could change, or an option is out of its range.

    Examples:
        >>> import convwright as cw
        >>> method = cw.methods.ParetoSearch(cw.read("zoo:mnist-a"), epochs=2, tune_epochs=1, objective=["macs"])
        >>> [(c.role, c.epochs) for c in method.ask()], method.objective
        ([('base', 2)], ('macs',))
    """

    Options = ParetoOptions
    options: ParetoOptions
    per_tuning = 16  # four times Auto's, as several networks are sought

    def default_limits(self) -> Limits:
        """Return no limits."""
        return Limits({})

    def set_up(self) -> None:
        """Set the levels; refuse, before any training, what no training could help."""
        super().set_up()
        self.objective = objective_costs(self.options.objective)
        self.benches, self._unreached = self._levels()
        self._tried: set[frozenset[str]] = set()  # networks by their edits: none is proposed twice
        self._ends: range = range(0)  # trials of the final trainings
        begun = (design for bench in self.benches for design in proposals(bench, self.findings, most=2))
        if any(design.edits for design in begun):
            return
        dropped = self._dropped()
        why = reasons(dropped)
        if not dropped or self.limits.met(costs_of(self.arch.profile()) | dict.fromkeys(MEASURED, 0)):
            raise ConvwrightError(
                f"{self.arch.source} has nothing that method pareto could change" + (f" ({why})" if why else "")
            )
        raise BudgetError(f"no proposal meets {self.limits.describe()} ({why}). Raise the budget")

    @property
    def finals(self) -> tuple[int, ...]:
        """The trials of networks that were trained to the end and meet the budget, so far."""
        return tuple(number for number in self._ends if number in self.results and self._meets(self.results[number]))

    # ------------------------------------------------------------------ costs

    def _levels(self) -> tuple[tuple[DesignBuilder, ...], tuple[str, ...]]:
        """Return what makes designs at each level of the first cost, and the levels that no width reaches."""
        metric = self.objective[0]
        unmeasured = [m for m in self.objective if m in MEASURED and m not in self.limits.limits]
        if unmeasured:
            raise ConvwrightError(
                f"objective: {unmeasured[0]} is measured only where the budget limits it; add one such as "
                f"{unmeasured[0]}<=100%, or take macs"
            )
        least, present = feasible_range(self.arch, self.limits.estimates).get(metric, (0, 0))
        if metric in MEASURED and self.limits.fitting is not None:
            least = 0  # fewer blocks may reach what no widths do
        top = self.limits.limits.get(metric, present)
        levels = [math.floor(top * 2 ** (-i / 2)) for i in range(_LEVELS)]
        reached = [level for level in levels if level >= least] or levels[:1]
        top_level, *lower = (self._limited(metric, level) for level in reached)
        first = DesignBuilder(self.arch, top_level, self.terms.divisor)
        benches = (first, *(DesignBuilder(self.arch, limits, self.terms.divisor, first) for limits in lower))
        return benches, tuple(human(level, metric) for level in levels if level not in reached)

    def _limited(self, metric: str, most: int) -> Limits:
        """Return the budget with a limit on one cost that is no looser."""
        limit = min(most, self.limits.limits.get(metric, most))
        return replace(self.limits, limits={**self.limits.limits, metric: limit})

    def _point(self, member: Runner) -> Point:
        """Return accuracy and costs as they are compared: costs by cells of 2.5 per cent that end at the levels."""
        top = {**costs_of(self.arch.profile()), **self.limits.limits}
        cells = (math.ceil(_CELLS * math.log2(max(member.costs[m], 1) / top[m]) - 1e-9) for m in self.objective)
        return member.scored.score, *(-cell for cell in cells)

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        base = yield from self._base(self.benches[0])
        if base is None:
            return
        metric = self.objective[0]
        levels = ", ".join(human(bench.limits.limits[metric], metric) for bench in self.benches)
        unreached = f" ({', '.join(self._unreached)} cannot be reached by width)" if self._unreached else ""
        aim = f"objective {base.metric.name}, {', '.join(self.objective)}; budget {self.limits.describe() or 'none'}"
        self._diagnosed(base, f"{aim}; proposals at {levels} {metric}{unreached}")
        share = max(1, int(self.left * _HALVING)) if self.options.rounds else self.left
        begun = self._population(self._course(_MOST, share)[0].count)
        dropped = self._dropped()
        listed = ", ".join(f"{d.words} at {human(bench.limits.limits[metric], metric)}" for bench, d in begun)
        left_out = f". Left out: {reasons(dropped, most=len(dropped))}" if dropped else ""
        self._note("proposals", f"{len(begun)} of them: {listed}{left_out}")
        members = tuple(Runner(bench, d, self.untouched.with_edits(*d.edits), base.trial) for bench, d in begun)
        members = yield from self._race(members, share)
        for number in range(1, self.options.rounds + 1):
            near = (yield from self._round(number, members)) if members else None
            if near is None:
                break
            members = near
        yield from self._end(base, members)

    def _course(self, count: int, budget: int) -> tuple[Rung, ...]:
        """Return the rungs of successive halving, none with fewer networks than are wanted."""
        return rungs(count, budget, self.options.eta, last=self.options.points, least=self.options.points)

    def _population(self, most: int) -> list[tuple[DesignBuilder, ProposedDesign]]:
        """Return the first proposal of each level, then the second of each, and so forth; equal networks once."""
        each = math.ceil(most / len(self.benches)) + 1  # one more, where a network comes at two levels
        columns = [[(bench, d) for d in proposals(bench, self.findings, each) if d.edits] for bench in self.benches]
        in_turn = (entry for row in zip_longest(*columns) for entry in row if entry is not None)
        return list(islice((entry for entry in in_turn if self._is_new(entry[1].edits)), most))

    def _is_new(self, edits: Sequence[Edit]) -> bool:
        """Note a network, and return whether it was not noted before."""
        key = frozenset(map(str, edits))
        known = key in self._tried
        self._tried.add(key)
        return not known

    def _race(self, members: _Members, share: int) -> Runners:
        """Train all, those on the front on, and so forth; return those of the last rung, chosen likewise."""
        race = self._course(len(members), share) if members else ()
        for number, rung in enumerate(race, start=1):
            last = number == len(race)
            members = yield from self._trained(members, rung.epochs, self.later_probes if last else ())
            for_epochs = f"{len(members)} networks for {rung.epochs} epoch{'s' * (rung.epochs > 1)}"
            keep = self.options.points if last else race[number].count
            members = self._chosen(f"rung {number} of {len(race)}, {for_epochs}", members, keep)
            if not members:
                break
        return members

    def _round(self, number: int, members: _Members) -> Generator[Batch, tuple[Evidence, ...], _Members | None]:
        """Try neighbours of those that are farthest from the others; return what is gone on with, None at the end."""
        size, spent = len(members), self.results[members[0].trial].candidate.epochs
        if self.left < size + 1:
            return None
        share = max(self.left // (self.options.rounds - number + 1), min(self.left, 2 * size))
        most = min(max(size, share // spent - size), share - size)
        metric = self.objective[(number - 1) % len(self.objective)]
        near = self._neighbours(members, metric, most, number)
        if not near:
            return None
        everyone = (*members, *near)
        epochs = min(spent, share // len(everyone))
        everyone = yield from self._trained(everyone, epochs, self.later_probes)
        return self._chosen(f"neighbours, round {number}", everyone, max(self.options.points, size))

    def _neighbours(self, members: _Members, metric: str, most: int, number: int) -> _Members:
        """Return neighbours of the least crowded members of the front, each at most as costly, by turns."""
        points = [self._point(member) for member in members]
        front = fronts(points)[0]
        distances = dict(zip(front, crowding([points[i] for i in front]), strict=True))
        centres = sorted(front, key=lambda i: (-distances[i], -points[i][0]))[:_CENTRES]
        columns = []
        for member in (members[i] for i in centres):  # their neighbours, back at their own cost
            try:
                origin = member.bench.arch
            except EditError as error:
                self._note(f"neighbours, round {number}", f"none of {member.words}: {error}")
                continue
            bench = DesignBuilder(origin, self._limited(metric, member.costs[metric]), self.terms.divisor)
            quality = quality_of(self.results[member.trial], origin, bench.limits, self.terms.divisor)
            columns.append([member.redesigned(bench, d) for d in neighbours(bench, member.design, quality)])
        in_turn = (each for row in zip_longest(*columns) for each in row if each is not None)
        return tuple(islice((each for each in in_turn if self._is_new(each.plan.edits)), most))

    def _end(self, base: Evidence, members: _Members) -> Script:
        """Train a spread choice of the front to the end, and the untouched network for as long.

        The result is the most accurate within the budget, or without one the knee.
        """
        if not members:
            self._note("end", "no final network: no proposal could be trained")
            return
        points = [self._point(member) for member in members]
        front = fronts(points)[0]
        finals = [members[front[i]] for i in spread([points[i] for i in front], self.options.points)]
        epochs = finals[0].epochs + self.terms.tune_epochs
        self._step += 1
        self._ends = range(len(self.results), len(self.results) + len(finals))
        *found, _ = yield (
            *(self._candidate(member, self.terms.tune_epochs) for member in finals),
            Candidate(self.untouched, base.trial, epochs, self.terms.seed + self._step, role="baseline"),
        )
        ended = [self._after(m, e, self.terms.tune_epochs) for m, e in zip(finals, found, strict=True)]
        words = {member.trial: member.words for member in ended}
        usable = [member for member in ended if member.scored.usable]
        if not usable:
            self._note("end", f"no final network: {self._why_not(ended[0])}", words)
            return
        best = max(usable, key=lambda m: m.scored.score)
        rule = f"the most accurate within {self.limits.describe()}"
        if not self.limits.limits:
            costs = [[-math.log(max(m.costs[name], 1)) for name in self.objective] for m in usable]
            best = usable[knee([(m.scored.score, *row) for m, row in zip(usable, costs, strict=True)])]
            rule = "the knee of the front, as there is no budget"
        self._final = best.trial
        others = "; ".join(self._said(m) for m in self._by_cost(usable) if m is not best)
        beside = f"; beside it {others}" if others else ""
        self._note("end", f"{rule}: {self._said(best)}{beside}", words, best.trial)

    def _chosen(self, phase: str, members: _Members, count: int) -> _Members:
        """Return those that go on, and note why."""
        usable = [m for m in members if m.scored.usable]
        words = {m.trial: m.words for m in members}
        failed = [f"{m.words} failed ({self._why_not(m)})" for m in members if not m.scored.usable]
        if not usable:
            self._note(phase, f"all {len(members)} failed: {'; '.join(dict.fromkeys(failed))}", words)
            return ()
        points = [self._point(m) for m in usable]
        after = tuple(usable[i] for i in chosen(points, count))
        size = len(fronts(points)[0])
        gone = [m for m in self._by_cost(usable) if m not in after]
        parts = [f"{size} on the front of {len(usable)}; on go {'; '.join(map(self._said, self._by_cost(after)))}"]
        if gone:
            parts.append(f"not {'; '.join(map(self._said, gone))}")
        self._note(phase, ", ".join([*parts, *failed]), words, max(after, key=lambda m: m.scored.score).trial)
        return after

    def _by_cost(self, members: Sequence[Runner]) -> list[Runner]:
        return sorted(members, key=lambda m: [-m.costs[name] for name in self.objective])

    def _said(self, member: Runner) -> str:
        costs = ", ".join(f"{human(member.costs[m], m)} {m}" for m in self.objective)
        return f"{member.told} at {costs}"

    def _dropped(self) -> dict[str, str]:
        return {words: why for bench in self.benches for words, why in bench.dropped.items()}
