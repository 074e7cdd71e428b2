"""The control of a channel search: widths drawn at random within the budget, tried as long; the best are kept."""

from __future__ import annotations

import math
import random

from pydantic import Field

from convwright.cost.budget import Limits
from convwright.edits import Plan, Width
from convwright.methods.base import Candidate, register
from convwright.methods.options import MethodOptions
from convwright.methods.script import Script, Scripted
from convwright.methods.shared.width_surface import Surface, own_costs


class RandomOptions(MethodOptions):
    """Options of method ``random``.

    Attributes:
        trials: How many are drawn.
        trial_epochs: Epochs of each.
        spread: Largest factor.
    """

    trials: int = Field(36, ge=1)
    trial_epochs: int = Field(2, ge=1)
    spread: float = Field(2.0, ge=1)


@register("random")
class RandomWidths(Scripted):
    """Trials with widths drawn at random and scaled to the budget, from new weights; the most accurate is trained.

    Each group's width is its own times a factor, log-uniform from 1 / ``spread`` to ``spread``; then all are scaled to
    the budget. So every trial costs the same, and what a channel search finds can be held against as many draws.

    Without a budget the network's own MACs and parameters are the limits. What was drawn has no weights to inherit:
    where the network comes trained, the final trainings have new weights, too, for `tune_epochs`.

    Raises:
        BudgetError: No widths meet the limits.
        ConvwrightError: No group can change, or an option is wrong.
    """

    Options = RandomOptions
    options: RandomOptions
    limits: Limits  # never None here
    ranks = True

    def default_limits(self) -> Limits:
        """Return the network's own costs."""
        return own_costs(self.arch)

    def set_up(self) -> None:
        """Draw all trials."""
        surface = Surface(self.arch, self.limits, divisor=self.terms.divisor)
        seed, spread, empty = self.terms.seed, self.options.spread, Plan.empty(self.arch)
        rng = random.Random(seed)
        widths = [drawn(surface, rng, 1 / spread, spread, scaled=True) for _ in range(self.options.trials)]
        self.epochs = self.terms.epochs or self.terms.tune_epochs
        self.trials = tuple(
            Candidate(empty.with_edits(*edits), None, self.options.trial_epochs, seed + turn, weights="fresh")
            for turn, edits in enumerate(widths)
        )
        self.baseline = Candidate(empty, None, self.epochs, seed, role="baseline", weights="fresh")

    def _run(self) -> Script:
        told = yield self.trials
        found = max((e for e in told if self._meets(e)), key=lambda e: e.score, default=None)
        count = len(self.trials)
        if found is None:
            self._note("random, end", f"none of {count} trials could be trained within the budget")
            return
        reason = f"trial {found.trial} of {count}, {found.metric.name} {found.shown}"
        self._note("random, end", reason, {found.trial: "the most accurate"}, found.trial)
        final = Candidate(found.candidate.plan, None, self.epochs, self.terms.seed, weights="fresh")
        evidence, _ = yield (final, self.baseline)
        self._final = evidence.trial


def drawn(surface: Surface, rng: random.Random, low: float, high: float, scaled: bool) -> tuple[Width, ...]:
    """Return widths drawn at random: each family's size times a factor, log-uniform, independent of all others.

    Args:
        surface: The network and its budget.
        rng: Draws one number per family of tied groups, in the network's order.
        low: Smallest factor.
        high: Largest.
        scaled: Whether the widths are then scaled to the budget, which they use as well as steps allow.
    """
    wanted = {f.name: f.size * math.exp(rng.uniform(math.log(low), math.log(high))) for f in surface.families}
    if scaled:
        return surface.edits(surface.project(wanted).widths)
    return surface.edits({f.name: f.rounded(wanted[f.name]) for f in surface.families})
