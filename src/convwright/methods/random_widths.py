"""The control of a channel search: widths drawn at random within the budget, tried as long; the best are kept."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from convwright.cost.budget import Limits
from convwright.edits import Plan, Width
from convwright.errors import ConvwrightError
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.script import Script, Scripted
from convwright.methods.shared.width_surface import Surface

if TYPE_CHECKING:
    from convwright.architecture import Architecture


@register("random")
class RandomWidths(Scripted):
    """Trials with widths drawn at random and scaled to the budget, from new weights; the most accurate is trained.

    Each group's width is its own times a factor, log-uniform from 1 / ``spread`` to ``spread``; then all are scaled to
    the budget. So every trial costs the same, and what a channel search finds can be held against as many draws.

    Args:
        arch: The network.
        limits: The budget in numbers; None: the network's own MACs and parameters.
        epochs: Epochs of the final training, of new weights, and of the untouched network's beside it; 0 takes
            `tune_epochs`, of new weights, too: what was drawn has no weights to inherit.
        tune_epochs: See `epochs`.
        seed: Of draws, weights and trainings.
        divisor: Widths are rounded to multiples of this.
        trials: How many are drawn.
        trial_epochs: Epochs of each.
        spread: Largest factor.

    Raises:
        BudgetError: No widths meet the limits.
        ConvwrightError: No group can change, or an option is wrong.
    """

    limits: Limits  # never None here
    ranks = True

    def __init__(
        self,
        arch: Architecture,
        limits: Limits | None = None,
        *,
        epochs: int = 1,
        tune_epochs: int = 1,
        seed: int = 0,
        divisor: int = 1,
        trials: int = 36,
        trial_epochs: int = 2,
        spread: float = 2.0,
    ) -> None:
        if trials < 1 or trial_epochs < 1 or not spread >= 1:
            raise ConvwrightError(
                f"trials={trials}, trial_epochs={trial_epochs}, spread={spread}: give at least 1 of each"
            )
        profile = arch.profile()
        limits = limits or Limits({"macs": profile.macs, "params": profile.params})
        surface = Surface(arch, limits, divisor=divisor)
        rng = random.Random(seed)
        empty = Plan.empty(arch)
        plans = [empty.with_edits(*drawn(surface, rng, 1 / spread, spread, scaled=True)) for _ in range(trials)]
        super().__init__(limits)
        self.seed, self.epochs = seed, epochs or tune_epochs
        self.trials = tuple(
            Candidate(plan, None, trial_epochs, seed + turn, weights="fresh") for turn, plan in enumerate(plans)
        )
        self.baseline = Candidate(empty, None, self.epochs, seed, role="baseline", weights="fresh")
        self._begin()

    def _run(self) -> Script:
        yield self.trials
        found = self._chosen()
        if found is None:
            return
        final = Candidate(found.candidate.plan, None, self.epochs, self.seed, weights="fresh")
        evidence, _ = yield (final, self.baseline)
        self._final = evidence.trial

    def _chosen(self) -> Evidence | None:
        """Return the most accurate draw."""
        known = [self.results[number] for number in range(len(self.trials)) if number in self.results]
        return max((e for e in known if self._meets(e)), key=lambda e: e.score, default=None)

    @property
    def log(self) -> tuple[str, ...]:
        """What was found, once all draws are told."""
        if not all(number in self.results for number in range(len(self.trials))):
            return ()
        found = self._chosen()
        if found is None:
            return (f"random, end: none of {len(self.trials)} trials could be trained within the budget",)
        return (f"random, end: trial {found.trial} of {len(self.trials)}, accuracy {found.score:.2%}",)


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
