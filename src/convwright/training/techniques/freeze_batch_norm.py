"""Frozen batch norm: the running statistics of trained weights stay, and normalise in training, too."""

from __future__ import annotations

from torch import nn

from convwright.repair.batch_norm import norms_of
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


@technique(
    "freeze_batch_norm",
    Card(
        does="Batch norms normalise by their running statistics in training, too, and do not change them; scales and "
        "shifts still learn.",
        cost="None: a little less work.",
        helps="Trained networks that are tuned in small batches, or whose statistics are those of far more images.",
        hurts="Networks trained from new weights, whose statistics say nothing yet, and images unlike those of the "
        "first training. A search re-estimates them after each cut, before the training.",
        source="He et al. 2017 (Mask R-CNN) and torchvision's FrozenBatchNorm2d, there with fixed scales and shifts.",
    ),
)
class FreezeBatchNorm(Technique):
    """Frozen batch norm has no options."""

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn where there is nothing to freeze."""
        if norms_of(setting.arch.model):
            return ()
        return ("techniques.freeze_batch_norm has no effect: no batch norm keeps running statistics",)

    def effect(self, training: Training) -> Effect:
        """Return the effect on batch norms."""
        return _Frozen(training.model)


class _Frozen(Effect):
    def __init__(self, model: nn.Module) -> None:
        self.norms = norms_of(model)
        for norm in self.norms:
            norm.eval()
            # Each epoch puts the whole network into training mode.
            vars(norm)["train"] = lambda mode=True, norm=norm: norm

    def close(self) -> None:
        for norm in self.norms:
            del vars(norm)["train"]
