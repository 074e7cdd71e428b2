"""Designs of widths that need no training: one common ratio, or drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from convwright.cost.budget import Limits
from convwright.errors import BudgetError
from convwright.experiments.designs.design import Form, Setting, limits_of, opened
from convwright.methods.random_widths import drawn
from convwright.methods.shared.uniform_widths import uniform_widths
from convwright.methods.shared.width_surface import Surface

if TYPE_CHECKING:
    from convwright.architecture import Architecture


@dataclass(frozen=True)
class Uniform:
    """All widths share one ratio, the largest within the budget.

    Attributes:
        budget: E.g. ``macs<=50%`` of the network before any decision.
        widen: Whether a network below the budget is widened up to it; else it stays as it is.
    """

    kind: ClassVar[str] = "uniform"

    budget: str
    widen: bool = True

    def settle(self, model: str, form: Form, setting: Setting) -> Form:
        """Return the form with other widths."""
        limits = limits_of(self.budget, model, setting)
        if limits is None:
            raise BudgetError(f"{model}: a uniform design needs a budget; give one like macs<=50%")
        arch = opened(model, form, setting.shape)
        profile = arch.profile()
        if not self.widen and limits.met({"macs": profile.macs, "params": profile.params}):
            return form
        return form.joined(uniform_widths(arch, limits))


@dataclass(frozen=True)
class Drawn:
    """Widths drawn at random: each group's size times a factor, log-uniform, independent of all others.

    Attributes:
        seed: Of the draw.
        low: Smallest factor.
        high: Largest.
        budget: All widths are then scaled to it; "": they stay as drawn.
    """

    kind: ClassVar[str] = "drawn"

    seed: int
    low: float = 0.5
    high: float = 1.0
    budget: str = ""

    def settle(self, model: str, form: Form, setting: Setting) -> Form:
        """Return the form with other widths."""
        arch = opened(model, form, setting.shape)
        limits = limits_of(self.budget, model, setting)
        surface = Surface(arch, limits or _unlimited(arch), checked=limits is not None)
        return form.joined(drawn(surface, random.Random(self.seed), self.low, self.high, scaled=limits is not None))


def _unlimited(arch: Architecture) -> Limits:
    """Return limits that nothing drawn is held against."""
    return Limits({"macs": arch.profile().macs})
