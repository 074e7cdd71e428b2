"""Branch decay: the scales that end residual branches decay, and nothing else of the norms does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from convwright.training.techniques.branch_sparsity import branches_left, options_of_each, scaled_ends
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


@technique(
    "branch_decay",
    Card(
        does="After each step, multiplies the scales of the batch norm that ends a residual branch by 1 - strength * "
        "learning rate; branches that the loss does not hold up become small, none becomes 0.",
        cost="One vector operation per block and step. Some accuracy, by the strength.",
        helps="Deep residual networks from which blocks shall go without fine-tuning: the control of branch_sparsity.",
        hurts="Networks with no block to spare. Networks without residual blocks, or whose branches do not end in a "
        "normalisation with a scale: no effect. The shifts stay, so that a small branch may still add a constant.",
        source="Weight decay decoupled from the gradient (Loshchilov and Hutter 2019), on one scale per branch.",
    ),
)
class BranchDecay(Technique):
    """Options of branch decay.

    Attributes:
        strength: Share of the scales that goes per step, divided by the learning rate; 0: nothing.
    """

    strength: float = Field(0.01, ge=0, allow_inf_nan=False)

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn of branches whose scales it cannot find."""
        return branches_left(self.name, setting)

    def effect(self, training: Training) -> Effect:
        """Return the effect on the scales."""
        names = scaled_ends(training.setting.arch, trained=True)[0].values()
        scales = [training.model.get_submodule(name).get_parameter("weight") for name in names]
        return _BranchDecayEffect(self.strength, training.optimizer, scales)


class _BranchDecayEffect(Effect):
    def __init__(self, strength: float, optimizer: torch.optim.Optimizer, scales: Sequence[nn.Parameter]) -> None:
        self.strength, self.scales = strength, scales
        self.options = options_of_each(optimizer, scales)

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            for scale, options in zip(self.scales, self.options, strict=True):
                scale.mul_(max(0.0, 1 - self.strength * float(options["lr"])))
