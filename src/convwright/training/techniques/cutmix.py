"""CutMix: a rectangle of every image is taken from another of the batch, the target by its area."""

from __future__ import annotations

from torch import Tensor

from convwright.training.techniques.mixing import Mixing, shares
from convwright.training.techniques.technique import Card, technique


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
