"""Mixup: every image and its target are blended with another of the batch."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from convwright.training.techniques.mixing import Mixing, shares
from convwright.training.techniques.technique import Card, technique


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
