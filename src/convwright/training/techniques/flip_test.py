"""Test-time flip: scores are averaged over an image and its mirror image; reported beside the plain result."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convwright.training.settings import single_tensor
from convwright.training.techniques.technique import Card, Technique, TechniqueContext, technique


class Flipped(nn.Module):
    """A network that averages its class probabilities over an image and its mirror image.

    Args:
        model: Maps (n, c, h, w) to (n, classes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logarithms of the mean probabilities."""
        pair = [single_tensor(self.model(x)).float().log_softmax(1) for x in (images, images.flip(-1))]
        return torch.logaddexp(*pair) - torch.log(torch.tensor(2.0, device=images.device))


@technique(
    "test_flip",
    Card(
        does="Judges the test part a second time, with scores averaged over each image and its mirror image. "
        "`TrainResult.test_flip` holds the result; `TrainResult.test` stays the plain one.",
        cost="No training time; twice the time per image in use, so it is no fair rival of a network without it.",
        helps="Photographs: some tenths of a point on CIFAR-10.",
        hurts="Digits and letters, which mirrored are something else: warned where the recipe trains without flips.",
        source="Krizhevsky et al. 2012.",
    ),
)
class TestFlip(Technique):
    """Test-time flip; it has no options."""

    classifies: ClassVar[bool] = True
    __test__ = False  # not a test, whatever pytest thinks of the name

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn where the network never saw mirrored images."""
        if not setting.recipe.hflip:
            return ("techniques.test_flip: the recipe trains without mirrored images (hflip: false)",)
        return ()
