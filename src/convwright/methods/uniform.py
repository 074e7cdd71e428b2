"""The baselines that every search method must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convwright.methods.base import register
from convwright.methods.proposals import Proposal, Proposals
from convwright.methods.shared.uniform_widths import uniform_widths

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits


@register("uniform")
class Uniform(Proposals):
    """One ratio for all widths, channels by importance, then fine-tuning.

    Asks for the untouched network first. Then, side by side and for the same number of epochs: the
    untouched network trained further, which is what the result is compared with, and the network whose
    free groups are all scaled by the largest ratio that meets all limits. A budget above the
    network's own costs scales up.

    Args:
        arch: The network.
        limits: The budget in numbers.
        epochs: Epochs of the first training; 0 if the network comes trained.
        tune_epochs: Epochs of the two trainings after it.
        seed: Of the trainings.
        divisor: Widths are rounded to multiples of this.

    Raises:
        BudgetError: No ratio meets the limits.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: Limits,
        *,
        epochs: int,
        tune_epochs: int,
        seed: int = 0,
        divisor: int = 1,
    ) -> None:
        narrowed = Proposal("one ratio for all widths", uniform_widths(arch, limits, divisor))
        super().__init__(arch, limits, (narrowed,), epochs=epochs, tune_epochs=tune_epochs, seed=seed)
