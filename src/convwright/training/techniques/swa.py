"""Stochastic weight averaging: equal-weight mean of the weights of the last epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from convwright.errors import RecipeError
from convwright.training.techniques.averaging import AveragingEffect
from convwright.training.techniques.technique import Card, Technique, TechniqueContext, Training, technique


def swa_rate(factor: float, begin: float, target: float, done: float) -> float:
    """Return the rate after averaging began: from `begin` along a half cosine to `target`.

    Args:
        factor: The schedule's own rate now; used before averaging began (`done` below 0).
        begin: Rate when averaging began.
        target: Rate to hold.
        done: Share of the way from `begin` to `target`.
    """
    if done < 0:
        return factor
    return target + (begin - target) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@technique(
    "swa",
    Card(
        does="Averages the weights after each of the last epochs with equal weight, holds the learning rate meanwhile, "
        "re-estimates batch norm on a pass over the training images, and judges and hands back the average.",
        cost="A copy of the weights, and one forward pass over the training images at the end.",
        helps="Schedules that would end at a rate above zero; noisy trainings with small batches.",
        hurts="Next to a one-cycle schedule that ends at zero there is little left to average, and holding the rate "
        "costs what its end would have given. Not with ema: both decide which weights are handed back.",
        source="Izmailov et al. 2018; torch.optim.swa_utils.",
    ),
)
class Swa(Technique):
    """Options of stochastic weight averaging.

    Attributes:
        start: Share of the training after which averaging begins.
        lr: Share of the recipe's highest rate to hold from then on; None: the rate at that moment.
        anneal_epochs: Epochs until that rate is reached.
    """

    start: float = Field(0.75, ge=0, lt=1)
    lr: float | None = Field(None, gt=0, le=1)
    anneal_epochs: float = Field(1.0, ge=0)

    excludes: ClassVar[Mapping[str, str]] = {"ema": "both decide which weights are handed back; keep one of them"}

    def begin(self, setting: TechniqueContext) -> int:
        """Return the first step of averaging: of an epoch, so that each that counts was trained at its rate."""
        return math.ceil(self.start * setting.steps / setting.steps_per_epoch) * setting.steps_per_epoch

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse an average that is longer than the training."""
        if self.begin(setting) >= setting.steps:
            raise RecipeError(
                f"recipe field techniques.swa.start={self.start:g}: of {setting.steps / setting.steps_per_epoch:.3g} "
                "epochs none is left to average; train longer or start earlier"
            )
        return ()

    def effect(self, training: Training) -> AveragingEffect:
        """Return the effect on rates and weights."""
        return _SwaEffect(self, training)


class _SwaEffect(AveragingEffect):
    def __init__(self, options: Swa, training: Training) -> None:
        self.options, self.begin = options, options.begin(training.setting)
        super().__init__(training, None, self._ends_an_epoch)

    def _ends_an_epoch(self, step: int) -> bool:
        setting = self.training.setting
        return step >= self.begin and ((step + 1) % setting.steps_per_epoch == 0 or step + 1 == setting.steps)

    def rate(self, factor: float, step: int) -> float:
        if step < self.begin:
            return factor
        begin = self.training.rate(self.begin)
        target = begin if self.options.lr is None else self.options.lr
        length = self.options.anneal_epochs * self.training.setting.steps_per_epoch
        return swa_rate(factor, begin, target, (step - self.begin) / length if length else 1.0)
