"""What mixup and cutmix share: soft targets, the share of batches, and the share of the training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from convwright.errors import RecipeError
from convwright.training.techniques.technique import Effect, Technique, TechniqueContext, Training


class Mixing(Technique):
    """Options of a technique that blends images of a batch.

    Attributes:
        alpha: Of the Beta distribution.
        until: Share of the training after which images stay whole.
        probability: Share of batches that are blended.
    """

    alpha: float = Field(1.0, gt=0, le=32, allow_inf_nan=False)
    until: float = Field(1.0, gt=0, le=1)
    probability: float = Field(1.0, gt=0, le=1)

    @staticmethod
    def blend(images: Tensor, targets: Tensor, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
        """Return blended images (n, c, h, w) and targets (n, num_classes)."""
        raise NotImplementedError

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse batches of one image: there is nothing to blend with."""
        if setting.recipe.batch_size < 2:
            raise RecipeError(f"recipe field techniques.{self.name}: batch_size=1 leaves nothing to blend with")
        if setting.data.num_classes < 2:
            raise RecipeError(f"recipe field techniques.{self.name}: the data have a single class")
        return ()

    def effect(self, training: Training) -> MixingEffect:
        """Return the effect on batches."""
        blend, classes = type(self).blend, training.setting.data.num_classes
        return MixingEffect(self, training.setting.steps, lambda x, y: blend(x, y, classes, self.alpha))


class MixingEffect(Effect):
    """Blends the batches of the first part of a training."""

    def __init__(self, options: Mixing, steps: int, blend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.probability = options.probability
        self.last = round(options.until * steps)
        self.blend = blend

    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the blended batch, or the batch as it is."""
        if step >= self.last or (self.probability < 1 and float(torch.rand(())) >= self.probability):
            return images, targets
        return self.blend(images, targets)


def shares(targets: Tensor, num_classes: int) -> Tensor:
    """Return (n, num_classes) shares from class numbers (n,), or the shares that were given."""
    if targets.ndim == 2:
        return targets
    return torch.nn.functional.one_hot(targets, num_classes).float()
