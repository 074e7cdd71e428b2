"""Lookahead: slow weights follow the optimizer's from a distance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


def lookahead(fast: Iterable[Tensor], slow: Iterable[Tensor], alpha: float = 0.5) -> None:
    """Move the slow weights a share `alpha` of the way to the fast ones, and put the fast ones there.

    Written here: timm's and pytorch_optimizer's wrappers own the optimizer, its step and its state.

    Args:
        fast: The weights in training.
        slow: A copy of them from when this was last called (at first: from the beginning).
        alpha: Share of the way.
    """
    with torch.no_grad():
        for quick, steady in zip(fast, slow, strict=True):
            steady.lerp_(quick, alpha)
            quick.copy_(steady)


@technique(
    "lookahead",
    Card(
        does="Every k steps, slow weights go a share of the way to the optimizer's, which continue from there.",
        cost="A copy of the weights; no time that can be measured.",
        helps="Rates that are a little too high, and optimizers that swing; cheap steadiness for short trainings.",
        hurts="Well-tuned schedules that end at zero, where it changes little.",
        source="Zhang et al. 2019.",
    ),
)
class Lookahead(Technique):
    """Options of lookahead.

    Attributes:
        alpha: Share of the way that the slow weights go.
        k: Steps between two moves.
    """

    alpha: float = Field(0.5, gt=0, le=1)
    k: int = Field(6, ge=1)

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn where the slow weights are always the optimizer's, or never move."""
        if self.alpha == 1:
            return ("techniques.lookahead.alpha=1 has no effect: the slow weights are the optimizer's",)
        if self.k > setting.steps:
            return (f"techniques.lookahead.k={self.k} has no effect: the training has {setting.steps} steps",)
        return ()

    def effect(self, training: Training) -> Effect:
        """Return the effect on weights."""
        return _LookaheadEffect(self, training.model)


class _LookaheadEffect(Effect):
    finishes = True

    def __init__(self, options: Lookahead, model: nn.Module) -> None:
        self.options = options
        self.named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.slow = {name: p.clone() for name, p in self.named.items()}

    def after_step(self, step: int) -> None:
        if (step + 1) % self.options.k == 0:
            lookahead(self.named.values(), self.slow.values(), self.options.alpha)

    def finish(self) -> None:
        """Hand back the slow weights, as the paper does."""
        for name, slow in self.slow.items():
            self.named[name].copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, slow in state["slow"].items():
            self.slow[name].copy_(slow)
