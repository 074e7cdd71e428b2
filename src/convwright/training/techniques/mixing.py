"""Mixup and cutmix: images of a batch are blended, or pasted into each other, and so are their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from convwright.errors import RecipeError
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


class Mixing(Technique):
    """Options of a technique that blends images of a batch.

    Attributes:
        alpha: Of the Beta distribution.
        until: Share of the training after which images stay whole.
        probability: Share of batches that are blended.
    """

    classifies: ClassVar[bool] = True

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

    def effect(self, training: Training) -> Effect:
        """Return the effect on batches."""
        blend, classes = type(self).blend, training.setting.data.num_classes
        return _MixingEffect(self, training.setting.steps, lambda x, y: blend(x, y, classes, self.alpha))


class _MixingEffect(Effect):
    def __init__(self, options: Mixing, steps: int, blend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.probability = options.probability
        self.last = round(options.until * steps)
        self.blend = blend

    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if step >= self.last or (self.probability < 1 and float(torch.rand(())) >= self.probability):
            return images, targets
        return self.blend(images, targets)


def shares(targets: Tensor, num_classes: int) -> Tensor:
    """Return (n, num_classes) shares from class numbers (n,), or the shares that were given."""
    if targets.ndim == 2:
        return targets
    return torch.nn.functional.one_hot(targets, num_classes).float()


def mixup(images: Tensor, targets: Tensor, num_classes: int, alpha: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return a batch blended with its own neighbours: one weight for the batch, drawn from Beta(alpha, alpha).

    Args:
        images: (n, c, h, w) float.
        targets: (n,) class numbers, or (n, num_classes) shares.
        num_classes: Number of classes.
        alpha: Above 0; larger means more even blends.

    Returns:
        (n, c, h, w) and (n, num_classes); use a loss that takes shares, such as torch.nn.CrossEntropyLoss.
    """
    from torchvision.transforms.v2 import MixUp

    mixed, mixed_targets = MixUp(alpha=alpha, num_classes=num_classes)(images, shares(targets, num_classes))
    return mixed, mixed_targets


@technique(
    "mixup",
    Card(
        does="Blends every image and its target with another of the batch; one weight per batch, from Beta(a, a).",
        cost="Some 2 % of a step on small images; the training accuracy shown is no longer that of whole images.",
        helps="Networks that overfit: the paper's largest single gain on CIFAR-10 (+3.6 points).",
        hurts="Networks that underfit: the paper's 1.5K-parameter network lost 0.5 points on MNIST.",
        source="Zhang et al. 2018; torchvision.transforms.v2.MixUp.",
    ),
)
class MixUp(Mixing):
    """Options of mixup.

    Attributes:
        alpha: Of the Beta distribution.
    """

    blend = staticmethod(mixup)

    alpha: float = Field(0.2, gt=0, le=32, allow_inf_nan=False)


def cutmix(images: Tensor, targets: Tensor, num_classes: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return a batch with one rectangle taken from its neighbours; its area share is drawn from Beta(alpha, alpha).

    Args:
        images: (n, c, h, w) float.
        targets: (n,) class numbers, or (n, num_classes) shares.
        num_classes: Number of classes.
        alpha: Above 0; 1 makes every share equally likely.

    Returns:
        (n, c, h, w) and (n, num_classes); use a loss that takes shares, such as torch.nn.CrossEntropyLoss.
    """
    from torchvision.transforms.v2 import CutMix as Transform

    mixed, mixed_targets = Transform(alpha=alpha, num_classes=num_classes)(images, shares(targets, num_classes))
    return mixed, mixed_targets


@technique(
    "cutmix",
    Card(
        does="Takes a rectangle of every image from another of the batch, and the same share of its target.",
        cost="Some 1 % of a step on small images; the training accuracy shown is no longer that of whole images.",
        helps="Networks that overfit, on photographs whose objects are seen from parts.",
        hurts="Networks that underfit, and images (digits) whose meaning is in the whole.",
        source="Yun et al. 2019; torchvision.transforms.v2.CutMix.",
    ),
)
class CutMix(Mixing):
    """Options of cutmix."""

    blend = staticmethod(cutmix)
