"""Method ``scaling``: a rule enlarges the whole network to the budget; the baseline of greedy enlarging.

Each rule turns a factor into stage widths, stage depths and a resolution; the factor is found by bisection on exact
costs. Rules are pure functions of numbers and need no network.

Sources: EfficientNet (Tan and Le 2019) for compound scaling, Dollar et al. 2021 for fast compound scaling. Random and
equal shares are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from convwright.cost.budget import Limits, human
from convwright.edits import Plan
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.enlarging.growth import nearest, trimmed
from convwright.methods.enlarging.space import EnlargingSpace, network_record, said_sizes
from convwright.methods.options import MethodOptions
from convwright.methods.script import Script, Scripted
from convwright.methods.shared.stage_knobs import Layers, Stages
from convwright.methods.shared.uniform_widths import finest_needed
from convwright.zoo.parts import divisible

Rule = Literal["width", "depth", "resolution", "compound", "fast", "uniform", "random", "equal"]
Cost = Callable[["Setting"], int]
_LARGEST = 1e4  # factor
_HALVINGS = 60


class Setting(NamedTuple):
    """A network as a rule sees it.

    Attributes:
        widths: channels that leave each stage.
        depths: blocks of each stage.
        resolution: side of the input.
        ends: what stem and head are multiplied by.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    resolution: int
    ends: float = 1.0


def scaled(
    base: Setting,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    resolution: float = 1.0,
    quantum: int = 8,
    step: int = 8,
    depth_rounding: Literal["up", "nearest"] = "up",
) -> Setting:
    """Multiply all widths, all depths and the resolution.

    Args:
        base: what is scaled.
        width: factor of the widths, and of stem and head.
        depth: factor of the depths.
        resolution: factor of the resolution.
        quantum: widths become multiples of it. A width whose factor is 1 stays.
        step: the resolution becomes a multiple of it.
        depth_rounding: ``up`` or to the ``nearest`` (half away from zero); at least 1 either way.
    """
    wide = tuple(divisible(w * width, quantum) if width != 1 else w for w in base.widths)
    deep = (d * depth for d in base.depths)
    blocks = tuple(max(1, math.ceil(d - 1e-9) if depth_rounding == "up" else int(d + 0.5)) for d in deep)
    side = base.resolution if resolution == 1 else max(step, step * int(base.resolution * resolution / step + 0.5))
    return Setting(wide, blocks, side, base.ends * width)


def single(base: Setting, kind: Literal["width", "depth", "resolution"], factor: float, quantum: int = 4) -> Setting:
    """Scale in one dimension only."""
    wide, deep, side = (factor if kind == name else 1.0 for name in ("width", "depth", "resolution"))
    return scaled(base, width=wide, depth=deep, resolution=side, quantum=quantum)


def compound(
    base: Setting, phi: float, coefficients: tuple[float, float, float] = (1.2, 1.1, 1.15), quantum: int = 8
) -> Setting:
    """Scale as EfficientNet does: depth alpha^phi, width beta^phi, resolution gamma^phi.

    Args:
        base: what is scaled.
        phi: 0 changes nothing; MACs grow by about (alpha * beta^2 * gamma^2)^phi.
        coefficients: alpha, beta, gamma.
        quantum: of the widths.
    """
    alpha, beta, gamma = coefficients
    return scaled(base, depth=alpha**phi, width=beta**phi, resolution=gamma**phi, quantum=quantum)


def fast(base: Setting, factor: float, weights: tuple[float, float, float] = (1, 8, 1), quantum: int = 8) -> Setting:
    """Scale as Dollar et al. do: MACs by a factor, shared out by weights.

    Depth grows by s^(e_d / E), width by s^(e_w / 2E), resolution by s^(e_r / 2E), with E the sum of the weights.

    Args:
        base: what is scaled.
        factor: s, what MACs are multiplied by, before rounding.
        weights: of depth, width and resolution: (1, 8, 1) is fast ("dWr"), (1, 1, 1) uniform ("dwr").
        quantum: of the widths.
    """
    total = sum(weights)
    depth, width, side = (factor ** (e / total) for e in weights)
    return scaled(
        base, depth=depth, width=width**0.5, resolution=side**0.5, quantum=quantum, step=4, depth_rounding="nearest"
    )


def to_cost(made: Callable[[float], Setting], cost: Cost, target: int, start: float = 1.0) -> Setting:
    """Return the setting of a rule whose cost is nearest to a target, by bisection of its factor.

    Args:
        made: factor -> setting; its cost must not fall with the factor.
        cost: exact cost of a setting.
        target: what it should cost.
        start: a factor at which it costs no more than the target.

    Raises:
        ConvwrightError: the target cannot be reached: the rule changes nothing that costs.
    """
    low, high = start, start + 1
    while cost(made(high)) < target:
        low, high = high, start + 2 * (high - start)
        if high > _LARGEST:
            raise ConvwrightError(f"the rule cannot bring the cost to {target:,}: what it scales costs nothing here")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(made(middle)) >= target else (middle, high)
    return min((made(low), made(high)), key=lambda s: abs(cost(s) - target))


def shares(stages: int, how: Literal["equal", "random"], seed: int = 0) -> tuple[float, ...]:
    """Return what part of the further MACs each stage gets, first by width, then by depth: 2 * `stages` parts.

    Args:
        stages: how many.
        how: ``equal``: all alike; ``random``: drawn evenly from all ways to share (a flat Dirichlet distribution).
        seed: of the draw.
    """
    if how == "equal":
        return (1 / (2 * stages),) * (2 * stages)
    return tuple(np.random.default_rng(seed).dirichlet(np.ones(2 * stages)).tolist())


class ScalingOptions(MethodOptions):
    """Options of method ``scaling``.

    Attributes:
        rule: ``width``, ``depth`` or ``resolution`` alone; ``compound`` (EfficientNet); ``fast`` or ``uniform``
            (Dollar et al.'s dWr and dwr); ``equal``: each stage gets an equal part of the further MACs, half by width
            and half by depth; ``random``: the parts are drawn.
        samples: How many random allocations are tried; only for ``random``.
        trial_epochs: Of ``random``: each allocation is trained for so many epochs first, and only the most accurate one
            to the end, as a search would; 0: all are trained to the end.
        trial_steps: Most steps of each of these short trainings; None: whole epochs.
        trial_weights: ``fresh``: they begin anew; ``inherit``: the untouched network is trained first, for `epochs`,
            and they begin with its function.
        alpha: Depth coefficient of ``compound``.
        beta: Its width coefficient.
        gamma: Its resolution coefficient.
        quantum: Widths of stages are multiples of this; None: as in `Stages.of`.
        final_tolerance: The result uses at least 1 - this of the limit, where steps allow.
        layers: As for `GreedyEnlarging`.
    """

    rule: Rule = "compound"
    samples: int = Field(4, ge=1)
    trial_epochs: int = Field(0, ge=0)
    trial_steps: int | None = Field(None, ge=1)
    trial_weights: Literal["fresh", "inherit"] = "fresh"
    alpha: float = Field(1.2, ge=1)
    beta: float = Field(1.1, ge=1)
    gamma: float = Field(1.15, ge=1)
    quantum: int | None = None
    final_tolerance: float = 0.02
    layers: Layers | None = None

    @model_validator(mode="after")
    def _together(self) -> ScalingOptions:
        if self.trial_epochs and self.rule != "random":
            raise ConvwrightError(
                f"trial_epochs={self.trial_epochs} with rule={self.rule!r}: a rule proposes one network; leave it 0"
            )
        if self.alpha == self.beta == self.gamma == 1:
            raise ConvwrightError("alpha, beta, gamma are all 1: give more for one of them")
        return self


@register("scaling")
class Scaling(Scripted):
    """One rule for the whole network, scaled to the budget, then trimmed in width to 98 to 100 % of it.

    Without the trim, rounding leaves gaps of several per cent between rules, and they could not be compared.

    The budget limits MACs or parameters. Trainings begin with new weights; where the network comes trained, weights are
    inherited and trained for `tune_epochs`.

    Attributes:
        settings: What is proposed.
        decisions: The proposal as a run records it.

    Raises:
        BudgetError: There is nothing to enlarge, or a rule needs a knob that the network does not have.
        ConvwrightError: An option is wrong.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20", "3x32x32")
        >>> limits = cw.parse_budget("macs<=200%").resolve(arch.profile())
        >>> method = cw.methods.Scaling(arch, limits, rule="compound")
        >>> method.settings[0].depths
        (3, 4, 4)
    """

    Options = ScalingOptions
    options: ScalingOptions
    limits: Limits  # never None here
    needs_budget = "enlarges a network to a budget; give one above its present cost"
    ranks = True

    def set_up(self) -> None:
        """Propose what the rule makes of the network."""
        given = self.options
        stages = Stages.of(self.arch, quantum=given.quantum, divisor=self.terms.divisor, layers=given.layers)
        self.space = EnlargingSpace.of(stages, self.limits)
        if self.space.metric == "latency":
            raise BudgetError("method scaling cannot follow a limit on latency; limit macs or params.")
        self._present = Setting(self.stages.widths, self.stages.depths, self.stages.resolution)
        self.target = self.limits.limits[self.space.metric]
        if self.space.cost(self.space.start) >= self.target:
            raise BudgetError(f"a budget of {human(self.target)} is not above the present cost: nothing to enlarge")
        self.space, self.settings = finest_needed(self.space.levels, self._settings)
        self.untouched = Plan.empty(self.arch)
        self._chosen = self.settings[0]
        self.shortened: Mapping[str, Any] = {} if given.trial_steps is None else {"max_steps": given.trial_steps}
        first = int(given.trial_weights == "inherit") if given.trial_epochs else 1 + (not self.terms.epochs)
        words = {i + first: f"{given.rule}: {_said(s)}" for i, s in enumerate(self.settings)}
        told = "; ".join(f"{_said(s)}, {self._cost(s) / self.target:.1%} of the limit" for s in self.settings)
        self._note(f"scaling by {given.rule}", told, words, next(iter(words)))

    @property
    def stages(self) -> Stages:
        """The network as stages."""
        return self.space.stages

    def _settings(self, space: EnlargingSpace) -> tuple[tuple[EnlargingSpace, tuple[Setting, ...]], float]:
        """Return what the rule makes of a space, and the least share of the target that is used."""
        self.space, given = space, self.options
        draws = range(given.samples) if given.rule == "random" else range(1)
        coefficients = given.alpha, given.beta, given.gamma
        made = (self._trimmed(self._made(given.rule, coefficients, self.terms.seed + i)) for i in draws)
        settings = tuple(dict.fromkeys(made))
        return (space, settings), min(map(self._cost, settings)) / self.target

    @property
    def plans(self) -> tuple[Plan, ...]:
        """How each proposal comes from the untouched network."""
        return tuple(self.untouched.with_edits(*self.stages.edits(*s)) for s in self.settings)

    def _run(self) -> Script:
        """Train the untouched network and, beside it, what the rule made of it."""
        plans = self.plans
        if self.options.trial_epochs:
            yield from self._best_of(plans)
            return
        epochs, seed = self.terms.epochs, self.terms.seed
        if epochs:
            baseline = Candidate(self.untouched, None, epochs, seed, role="baseline", weights="fresh")
            yield (baseline, *(Candidate(p, None, epochs, seed, weights="fresh") for p in plans))
            return
        (base,) = yield (Candidate(self.untouched, None, 0, self.terms.seed, role="base"),)
        if base.usable:
            baseline = Candidate(self.untouched, 0, self.terms.tune_epochs, self.terms.seed, role="baseline")
            yield (baseline, *(Candidate(p, 0, self.terms.tune_epochs, self.terms.seed) for p in plans))

    def _best_of(self, plans: Sequence[Plan]) -> Script:
        """Train all for a short time, and the most accurate one, beside the untouched network, to the end."""
        parent, epochs, seed, given = None, self.terms.epochs, self.terms.seed, self.options
        if given.trial_weights == "inherit":
            (base,) = yield (Candidate(self.untouched, None, epochs, seed, role="base", weights="fresh"),)
            parent = base.trial if base.usable else None
        trials: tuple[Evidence, ...] = ()
        if given.trial_weights == "fresh" or parent is not None:
            trials = yield tuple(
                Candidate(p, parent, given.trial_epochs, seed, weights=given.trial_weights, recipe=self.shortened)
                for p in plans
            )
        best = max((e for e in trials if e.usable), key=lambda e: e.score, default=None)
        if best is None:
            self._note("scaling, end", "no allocation could be trained")
            return
        self._chosen = self.settings[plans.index(best.candidate.plan)]
        epochs = epochs or self.terms.tune_epochs
        final = Candidate(best.candidate.plan, None, epochs, seed, weights="fresh")
        baseline = Candidate(self.untouched, None, epochs, seed, role="baseline", weights="fresh")
        evidence, _ = yield (final, baseline)
        self._final = evidence.trial
        told = f"trial {best.trial} of {len(plans)}, {_said(self._chosen)}, {best.metric.name} {best.shown}"
        self._note("scaling, end", told, {best.trial: "the best"}, evidence.trial)

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """The untouched network and the one that is proposed, as `GreedyEnlarging.history` records networks."""
        both = ("nothing", self._present), (self.options.rule, self._chosen)
        return tuple(network_record(n, turned, s[:3], self._cost(s)) for n, (turned, s) in enumerate(both))

    # ------------------------------------------------------------------ what the rule makes

    def _made(self, rule: Rule, coefficients: tuple[float, float, float], seed: int) -> Setting:
        stages, base = self.stages, self._present
        if rule == "equal" or rule == "random":
            return self._shared(shares(len(stages.knobs), rule, seed))
        quantum = max((knob.quantum for knob in stages.knobs), default=1)
        made: Callable[[float], Setting]
        if rule in ("width", "depth", "resolution"):
            made, start = partial(single, base, rule, quantum=quantum), 1.0
        elif rule == "compound":
            made, start = partial(compound, base, coefficients=coefficients, quantum=quantum), 0.0
        else:
            weights = (1, 8, 1) if rule == "fast" else (1, 1, 1)
            made, start = partial(fast, base, weights=weights, quantum=quantum), 1.0
        return to_cost(lambda factor: self._possible(made(factor)), self._cost, self.target, start)

    def _possible(self, wanted: Setting) -> Setting:
        """Return what comes nearest to a setting: a knob that the network does not have stays."""
        stages = self.stages
        knobs = stages.knobs
        widths = [
            k.grown(w) if k.quantum and w != k.width else k.width for k, w in zip(knobs, wanted.widths, strict=True)
        ]
        depths = [d if k.template else k.depth for k, d in zip(knobs, wanted.depths, strict=True)]
        side = stages.resolution if "resolution" in self.space.dropped else wanted.resolution
        return Setting(tuple(widths), tuple(depths), side, wanted.ends)

    def _shared(self, parts: Sequence[float]) -> Setting:
        """Spend each stage's part of the further cost on its width and its depth."""
        more = self.target - self.space.cost(self.space.start)
        point = self.space.start
        places = {(knob.kind, knob.stage): i for i, knob in enumerate(self.space.knobs)}
        for index, part in enumerate(parts):
            kind = "width" if index < len(parts) // 2 else "depth"
            place = places.get((kind, index % (len(parts) // 2)))
            before = self.space.cost(point)
            found = None if place is None else nearest(self.space, point, place, before + part * more)
            # A move is made where it comes nearer to what should be spent than staying.
            if found is not None and abs(self.space.cost(found) - before - part * more) < part * more:
                point = found
        return Setting(*self.space.parts(point))

    def _trimmed(self, setting: Setting) -> Setting:
        space = replace(self.space, ends=setting.ends, _costs={})
        point = space.point(*setting[:3])
        point = trimmed(space, point, self.target, self.options.final_tolerance, self.space.trimming)
        if space.cost(point) > self.target:  # no width has grown: what has is taken back, and widths fill the rest
            point = trimmed(space, point, self.target, self.options.final_tolerance, range(len(self.space.knobs)))
        return Setting(*self.space.parts(point), setting.ends)

    def _cost(self, setting: Setting) -> int:
        return self.stages.costs(*setting)[self.space.metric]


def _said(setting: Setting) -> str:
    return said_sizes(*setting[:3])
