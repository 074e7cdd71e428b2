"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from convwright.errors import RecipeError
from convwright.training.techniques.averaging import AveragingEffect
from convwright.training.techniques.technique import Card, Technique, TechniqueContext, Training, technique


@technique(
    "ema",
    Card(
        does="Averages the weights after each step, older ones with exponentially falling weight, re-estimates batch "
        "norm on a pass over the training images, and judges and hands back the average.",
        cost="A copy of the weights, its update per step (1 to 3 % on small networks), and one forward pass over the "
        "training images at the end.",
        helps="Trainings whose rate stays high until late: the average is as good as a lower rate, at any time.",
        hurts="Next to a one-cycle schedule that ends at zero it changes little; short trainings with a decay close to "
        "1 average weights from the beginning. Not with swa: both decide which weights are handed back.",
        source="Polyak and Juditsky 1992; torch.optim.swa_utils.get_ema_multi_avg_fn.",
    ),
)
class Ema(Technique):
    """Options of the exponential moving average.

    Attributes:
        decay: Weight of the average against the new weights, per update.
        start: Share of the training after which averaging begins.
        interval: Update in every so many steps.
    """

    decay: float = Field(0.99, gt=0, lt=1)
    start: float = Field(0.0, ge=0, lt=1)
    interval: int = Field(1, ge=1)

    excludes: ClassVar[Mapping[str, str]] = {"swa": "both decide which weights are handed back; keep one of them"}

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse an average that never begins, and warn of one that reaches back to the first weights."""
        updates = (setting.steps - round(self.start * setting.steps)) // self.interval
        if updates < 1:
            raise RecipeError(
                f"recipe field techniques.ema: none of the {setting.steps} steps is averaged; start earlier or lower "
                "interval"
            )
        if self.decay**updates > 0.1 and self.start == 0:
            return (
                f"techniques.ema.decay={self.decay:g}: after {updates} updates the first weights still count "
                f"{self.decay**updates:.0%}; lower decay",
            )
        return ()

    def effect(self, training: Training) -> AveragingEffect:
        """Return the effect on weights."""
        begin = round(self.start * training.setting.steps)
        return AveragingEffect(
            training, self.decay, lambda step: step >= begin and (step + 1 - begin) % self.interval == 0
        )
