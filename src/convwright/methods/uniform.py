"""The baselines that every search method must beat."""

from __future__ import annotations

from convwright.cost.budget import Limits
from convwright.methods.base import register
from convwright.methods.proposals import Proposal, Proposals
from convwright.methods.shared.uniform_widths import uniform_widths


@register("uniform")
class Uniform(Proposals):
    """One ratio for all widths, channels by importance, then fine-tuning.

    Asks for the untouched network first. Then, side by side and for the same number of epochs: the
    untouched network trained further, which is what the result is compared with, and the network whose
    free groups are all scaled by the largest ratio that meets all limits. A budget above the
    network's own costs scales up.

    Raises:
        BudgetError: No ratio meets the limits.
    """

    limits: Limits  # never None here
    needs_budget = "scales a network to a budget; give one, such as macs<=50%"

    def set_up(self) -> None:
        """Find the ratio."""
        self.propose(Proposal("one ratio for all widths", uniform_widths(self.arch, self.limits, self.terms.divisor)))
