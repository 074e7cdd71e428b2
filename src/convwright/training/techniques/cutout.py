"""Cutout: one square of every training image is erased."""

from __future__ import annotations

import torch
from torch import Tensor

from convwright.errors import RecipeError
from convwright.training.data.augment import square_mask
from convwright.training.techniques.technique import Card, field_technique

field_technique(
    "cutout",
    Card(
        does="Sets one square per image to the mean. Its centre is uniform over the image, so that the border may cut "
        "it; `cutout` is its side in pixels.",
        cost="One mask per batch.",
        helps="Networks that overfit.",
        hurts="Networks that underfit: the paper's 1.5K-parameter network gained next to nothing on MNIST. With "
        "cutmix, erased squares are pasted along.",
        source="DeVries and Taylor 2017. The paper's library erases the same square in the whole batch; here, as in "
        "the original, each image has its own.",
    ),
    {"cutout": 8},
    {"cutout": 0},
)


def cutout(images: Tensor, length: int, generator: torch.Generator | None = None, *, value: float = 0.0) -> Tensor:
    """Return a copy of a batch with one square per image erased; the border may cut it.

    Args:
        images: (n, c, h, w), any number type.
        length: Side of the squares in pixels; 0 erases nothing.
        generator: On the CPU; None: torch's own.
        value: What erased pixels become; 0 is the mean of normalised images.

    Returns:
        (n, c, h, w), same type and device.

    Raises:
        RecipeError: The squares are larger than the images, or a negative length.
    """
    count, _, height, width = images.shape
    if not 0 <= length <= min(height, width):
        raise RecipeError(f"cutout length={length} for {height}x{width} images; use 0 to {min(height, width)}")
    row = torch.randint(height, (count,), generator=generator)
    column = torch.randint(width, (count,), generator=generator)
    return images.masked_fill(square_mask(row, column, length, height, width).to(images.device), value)
