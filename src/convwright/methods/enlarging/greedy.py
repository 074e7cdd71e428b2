"""Greedy enlarging: where should more MACs go, into width, depth or resolution, and in which stage?

After Greedy Network Enlarging (Liu et al. 2021). What is known of it: a network is enlarged stage by stage in width and
depth, and in resolution, in steps that each spend a part of the MACs. How a step is decided is reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from convwright.cost.budget import Limits, human
from convwright.edits import AddBlock, Edit, Plan, Resolution, Width
from convwright.errors import ConvwrightError
from convwright.methods.base import Candidate, Evidence, Weights, register
from convwright.methods.enlarging.growth import (
    Level,
    Point,
    Schedule,
    Score,
    Step,
    Ties,
    budgets,
    enlarge,
    landings,
    level_with_the_best,
    mean_of,
    said,
    told_of,
    trimmed,
)
from convwright.methods.enlarging.space import EnlargingSpace, Metric, network_record, said_sizes
from convwright.methods.options import MethodOptions
from convwright.methods.script import Batch, Script, Scripted
from convwright.methods.shared.stage_knobs import Layers, Stages

# A part of the script that ends with an answer.
Judgements = Generator[Batch, tuple[Evidence, ...], list[Score]]
_USUAL_GROWTH = 1.1  # of the budget per step: 20 % in one stage is a violent move


@dataclass(frozen=True)
class FamilyNetwork:
    """One network of the family that a run leaves behind.

    Attributes:
        widths: channels that leave each stage.
        depths: blocks of each stage.
        resolution: side of the input.
        costs: MACs and parameters.
        score: validation accuracy after its short training, 0..1.
        trial: its number.
        plan: how it comes from the untouched network.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    resolution: int
    costs: Mapping[str, int]
    score: float
    trial: int
    plan: Plan


class GreedyOptions(MethodOptions):
    """Options of method ``greedy``.

    Attributes:
        objective: ``macs``, ``params`` or ``latency`` (then the limits must carry an estimate, and only widths grow:
            the estimate knows nothing of other layers or inputs). None: the first of these that is limited.
        steps: Increments. None: as many as make each at most 10 % of the network.
        schedule: ``geometric`` (equal ratios) or ``arithmetic`` (equal increments).
        beam: Networks per level that are gone on from.
        tolerance: A candidate lies within this part of its budget.
        span: Increments that one knob may take at once.
        width_growth: A width grows by at most this factor in a step.
        depth_growth: A depth grows at most to this times itself and 1 more.
        resolution: Whether the resolution may grow.
        resolution_step: Resolutions are multiples of this.
        quantum: Widths of stages are multiples of this; None: as in `Stages.of`.
        merge_equal_resolution: Blocks at one spatial size are one stage, whatever their widths.
        trial_epochs: Epochs of each candidate.
        trial_steps: Most steps of each candidate's training, where an epoch is too long; None: whole epochs.
        rescore: So many further seeds for those candidates of a level that a single training cannot tell apart; they
            are then compared by their means. 0: one training each.
        contenders: At most so many candidates of a level are trained again.
        ties: What decides where scores are equal within their errors: the ``cheaper`` network, or the ``score``.
        weights: ``fresh``: each candidate is trained from scratch, the paper's reading. ``inherit``: it begins with
            its parent's weights; widths grow by Net2Wider, blocks begin as the identity.
        final_tolerance: The result uses at least 1 - this of the limit, where steps allow.
        layers: How wide each layer is for given stage widths; None: in proportion, or the zoo's own rule.
    """

    objective: Metric | None = None
    steps: int | None = None
    schedule: Schedule = "geometric"
    beam: int = Field(1, ge=1)
    tolerance: float = Field(0.05, ge=0, lt=1)
    span: int = Field(4, ge=1)
    width_growth: float = Field(1.5, gt=1)
    depth_growth: float = Field(1.5, gt=1)
    resolution: bool = True
    resolution_step: int = 8
    quantum: int | None = None
    merge_equal_resolution: bool = False
    trial_epochs: int = Field(1, ge=1)
    trial_steps: int | None = Field(None, ge=1)
    rescore: int = Field(0, ge=0)
    contenders: int = Field(3, ge=2)
    ties: Ties = "cheaper"
    weights: Literal["fresh", "inherit"] = "fresh"
    final_tolerance: float = Field(0.02, gt=0, lt=1)
    layers: Layers | None = None


@register("greedy")
class GreedyEnlarging(Scripted):
    """Enlarges a network step by step: each spends an increment of the budget where it was found to help most.

    Level k has the budget T_k, from the present cost up to the limit. At each level every stage's width, every
    stage's depth and the resolution are turned, one at a time, until the cost is nearest to the
    budget by exact costs; each such network is trained for a few epochs, and the best is gone on from. Accuracies that
    differ by no more than their standard error are equal; then the cheaper network is taken.

    Budgets are absolute, so what one step leaves over the next one has. A knob that is too coarse for one increment
    (eight more pixels cost GhostNet 17 %) spans several: it is judged at the level where it lands, beside the networks
    that other steps made of the same budget. Where no candidate comes near a budget, or all of them fail, the budget is
    carried over to the next level, and that is said. At the end the widths are trimmed so that the network uses
    98 to 100 % of the limit, and it is trained beside the untouched network.

    The one limit of the method is that it never takes back: it finds the best network only if the best small networks
    lie within the best large ones (the paper's assumption). ``beam`` loosens that.

    Limits on other metrics than the objective are kept, too. All trainings have one seed; the final ones take
    `tune_epochs` where the network comes trained or weights are inherited.

    Attributes:
        dropped: Knobs that this network does not have -> why.
        levels: The budgets, the present cost first.
        decisions: What was decided so far.

    Raises:
        BudgetError: There is nothing to enlarge: no limit, one below the present cost, or no knob; or a metric is
            limited that cannot be followed.
        ConvwrightError: An option is wrong.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20", "3x32x32")
        >>> limits = cw.parse_budget("macs<=60M").resolve(arch.profile())
        >>> search = cw.methods.GreedyEnlarging(arch, limits, steps=4)
        >>> [round(budget / 1e6, 1) for budget in search.levels]
        [40.8, 44.9, 49.5, 54.5, 60.0]
    """

    Options = GreedyOptions
    options: GreedyOptions
    limits: Limits  # never None here
    needs_budget = 'enlarges a network to a budget; give one above its present cost: "macs<=200%"'
    ranks = True

    def set_up(self) -> None:
        """Find what can grow, and set the levels."""
        given, divisor = self.options, self.terms.divisor
        if given.quantum is not None and isinstance(divisor, int) and given.quantum % divisor:
            raise ConvwrightError(
                f"quantum={given.quantum} is no multiple of divisor={divisor}, so stages would have widths that break "
                f"it; give a multiple of {divisor}"
            )
        alike = {name: getattr(given, name) for name in ("quantum", "merge_equal_resolution", "layers")}
        stages = Stages.of(self.arch, divisor=divisor, **alike)
        steps = {"width_growth": given.width_growth, "depth_growth": given.depth_growth}
        side = given.resolution_step if given.resolution else 0
        self.space = EnlargingSpace.of(stages, self.limits, given.objective, **steps, resolution_step=side)
        self.dropped = self.space.dropped
        start, target = self.space.cost(self.space.start), self.limits.limits[self.space.metric]
        usual = max(1, math.ceil(math.log(max(target / start, 1)) / math.log(_USUAL_GROWTH)))
        self.levels = budgets(start, target, usual if given.steps is None else given.steps, given.schedule)
        # Widths as coarse as the end allows, and the search: no knob is to be lost by them.
        most = landings(self.space.levels[-1], self.levels, self.options)
        self.space, _ = self.space.spent(
            self.space.start,
            target,
            given.final_tolerance,
            lambda space: landings(space, self.levels, self.options) >= most,
        )
        self.shortened: Mapping[str, Any] = {} if given.trial_steps is None else {"max_steps": given.trial_steps}
        self.untouched = Plan.empty(self.arch)
        self._found: dict[tuple[int, Point], Evidence] = {}
        self._scores: dict[tuple[int, Point], Score] = {}
        self._course: tuple[Mapping[str, Any], ...] = ()
        self._best: Step | None = None
        self._base: int | None = None

    @property
    def stages(self) -> Stages:
        """The network as stages."""
        return self.space.stages

    def _meets(self, evidence: Evidence) -> bool:
        # What is measured is not among the counted costs: it is estimated again when the run ends.
        counted = Limits({m: v for m, v in self.limits.limits.items() if m in evidence.costs})
        return evidence.usable and counted.met(evidence.costs)

    @property
    def family(self) -> tuple[FamilyNetwork, ...]:
        """The networks on the way to the best one so far, from small to large."""
        self.ask()
        networks = []
        for step in self._best.line[1:] if self._best is not None else ():
            evidence, size = self._found[step.key], self.space.parts(step.point)
            ended = evidence.score, evidence.trial, evidence.candidate.plan
            networks.append(FamilyNetwork(*size, self.stages.costs(*size), *ended))
        return tuple(networks)

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        if self.dropped:
            left = "; ".join(f"{name} ({why})" for name, why in self.dropped.items())
            self._note("knobs", f"left out: {left}")
        if self.options.weights == "inherit":
            (base,) = yield (Candidate(self.untouched, None, self.terms.epochs, self.terms.seed, role="base"),)
            if not base.usable:
                words = {base.trial: "the untouched network"}
                self._note("base", f"there is nothing to begin with, {base.message}", words)
                return
            self._base = base.trial
        yield from self._levels()
        if self._best is None:
            self._note("enlarging, end", "no final network: no candidate came near any budget and was trained")
            return
        yield from self._end(self._best)

    def _levels(self) -> Script:
        course = enlarge(self.space, self.levels, self.options, self._seen)
        pool = next(course, None)
        while pool is not None:
            scores = yield from self._judgements(pool)
            try:
                pool = course.send(scores)
            except StopIteration:
                return

    def _judgements(self, pool: Sequence[Step]) -> Judgements:
        evidence = yield tuple(self._candidate(step) for step in pool)
        for step, found in zip(pool, evidence, strict=True):
            self._found[step.key] = found
            self._scores[step.key] = Score.of(found)
        yield from self._again(pool)
        return [self._scores[step.key] for step in pool]

    def _again(self, pool: Sequence[Step]) -> Script:
        """Train those that cannot be told apart with further seeds, the same for all; their scores become means."""
        scored = [replace(step, score=self._scores[step.key]) for step in pool]
        close = level_with_the_best(scored)[: self.options.contenders]
        if not self.options.rescore or len(close) < 2:
            return
        evidence = yield tuple(
            replace(self._candidate(step), seed=self.terms.seed + turn)
            for turn in range(1, self.options.rescore + 1)
            for step in close
        )
        for place, step in enumerate(close):
            told = [self._found[step.key], *evidence[place :: len(close)]]
            self._scores[step.key] = mean_of([e for e in told if e.usable])

    def _phase(self, number: int) -> str:
        return f"level {number} of {len(self.levels) - 1}, {human(self.levels[number], self.space.metric)}"

    def _seen(self, level: Level) -> None:
        phase = self._phase(level.number)
        words = {self._found[s.key].trial: self.space.words(s) for s in level.judged}
        if not level.kept:
            failed = [self._found[s.key] for s in level.judged]
            why = "; ".join(f"{words[e.trial]} failed ({e.message})" for e in failed)
            reason = f"all candidates failed: {why}" if why else "no knob comes near it by a whole step"
            self._note(phase, f"{reason}; the budget is carried over", words)
            return
        best = self._best = level.kept[0]
        found, score = self._found[best.key], self._scores[best.key]
        self._course = (*self._course, self._judged(level, best))
        others = [
            f"{words[e.trial]} {told_of(e, self._scores[s.key])}"
            for s in level.judged
            if (e := self._found[s.key]) is not found
        ]
        told = f"{words[found.trial]}, {said(score, error=True)}, {self._sizes(best)}"
        against = f", against {'; '.join(others)}" if others else ""
        self._note(phase, told + against, words, found.trial)

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """What was decided at each level, as plain values: the network, what was turned, every candidate's score.

        The first entry is the untouched network, the last one the network that was trimmed to the limit.
        """
        start = self.space.start
        return (self._record(Step(start, 0, self.space.cost(start)), "nothing"), *self._course)

    def _record(self, step: Step, turned: str) -> dict[str, Any]:
        return network_record(step.level, turned, self.space.parts(step.point), step.cost)

    def _judged(self, level: Level, best: Step) -> Mapping[str, Any]:
        return {
            **self._record(best, self.space.words(best)),
            "budget": level.budget,
            "score": self._scores[best.key].score,
            "candidates": [
                {
                    "turned": self.space.words(s),
                    "trial": self._found[s.key].trial,
                    "score": score.score if (score := self._scores[s.key]).usable else None,
                    "times": score.times,
                }
                for s in level.judged
            ],
        }

    def _sizes(self, step: Step) -> str:
        widths, depths, side = self.space.parts(step.point)
        cost = human(step.cost, self.space.metric)
        return f"{said_sizes(widths, depths, side)}, {cost} {self.space.metric}"

    def _end(self, best: Step) -> Script:
        """Trim the last network to the limit, and train it, and the untouched one beside it."""
        target = self.limits.limits[self.space.metric]
        self.space, point = self.space.spent(best.point, target, self.options.final_tolerance)
        inherits, epochs = self.options.weights == "inherit", self.terms.epochs or self.terms.tune_epochs
        if inherits:  # blocks and resolutions are not taken back: the network before them is taken
            while self.space.cost(point) > target and best.parent is not None and best.parent.parent is not None:
                best = best.parent
                point = trimmed(self.space, best.point, target, self.options.final_tolerance, self.space.trimming)
        elif self.space.cost(point) > target:
            point = trimmed(self.space, point, target, self.options.final_tolerance, range(len(self.space.knobs)))
        last = Step(point, len(self.levels), self.space.cost(point), (), best)
        final = self._training(last, self.terms.tune_epochs if inherits else epochs)
        self._course = (*self._course, self._record(last, "trimmed"))
        if inherits:  # the untouched network has as many epochs behind it as the result
            epochs = sum(self._found[s.key].candidate.epochs for s in best.line[1:]) + final.epochs
        made: Weights = "inherit" if inherits else "fresh"
        baseline = Candidate(self.untouched, self._base, epochs, self.terms.seed, role="baseline", weights=made)
        evidence, _ = yield (final, baseline)
        self._found[last.key] = evidence
        words = {evidence.trial: "the last network, trimmed and trained"}
        used = f"{self._sizes(last)} ({last.cost / target:.1%} of the limit)"
        if not evidence.usable:
            self._note("enlarging, end", f"{used}; its training failed, {evidence.message}", words)
            return
        self._final = evidence.trial
        self._note("enlarging, end", f"{used}; {evidence.metric.name} {evidence.shown}", words, evidence.trial)

    def _candidate(self, step: Step) -> Candidate:
        return replace(self._training(step, self.options.trial_epochs), recipe=self.shortened)

    def _training(self, step: Step, epochs: int) -> Candidate:
        if self.options.weights == "inherit":
            return self._inheriting(step, epochs)
        plan = self.untouched.with_edits(*self.stages.edits(*self.space.parts(step.point)))
        return Candidate(plan, None, epochs, self.terms.seed, weights="fresh")

    def _inheriting(self, step: Step, epochs: int) -> Candidate:
        """Return a candidate with its parent's weights: widths by whole plans, all else by further edits."""
        assert step.parent is not None
        above = self._found.get(step.parent.key)
        parent = self._base if above is None else above.trial
        before = self.untouched if above is None else above.candidate.plan
        wide, deep, side = self.space.parts(step.point)
        old_wide, old_deep, old_side = self.space.parts(step.parent.point)
        added: list[Edit] = [
            AddBlock(knob.template, copies=new - old)
            for knob, new, old in zip(self.stages.knobs, deep, old_deep, strict=True)
            if new > old
        ]
        added += [Resolution(side)] if side != old_side else []
        if wide == old_wide:
            return Candidate(before.with_edits(*added), parent, epochs, self.terms.seed)
        widths = self.stages.edits(wide, self.stages.depths, self.stages.resolution)
        kept = [e for e in before.edits if not isinstance(e, Width)]
        plan = self.untouched.with_edits(*widths, *kept, *added)
        return Candidate(plan, parent, epochs, self.terms.seed, weights="net2wider")
