"""Techniques whose switch is a field of the recipe: cycles of the learning rate, label smoothing, cutout."""

from __future__ import annotations

import torch
from torch import Tensor

from convwright.errors import RecipeError
from convwright.training.data.augment import square_mask
from convwright.training.techniques.technique import Card, field_technique

field_technique(
    "one_cycle",
    Card(
        does="The learning rate rises along a cosine from a 25th of `lr` to `lr` for the share `warmup` of all steps, "
        "then falls almost to zero. schedule_options: {cycle_momentum: true} moves the momentum the other way.",
        cost="None.",
        helps="Trainings of few epochs: a high rate is survived, and the end is calm.",
        hurts="`lr` is the peak and has to be higher than a constant rate. Stepped per epoch instead of per batch, as "
        "in the paper's code, it does almost nothing. Excludes other schedules.",
        source="Smith and Topin 2018; equals torch.optim.lr_scheduler.OneCycleLR.",
    ),
    {"schedule": "onecycle", "schedule_options": {}, "warmup": 0.3},
    {"schedule": "cosine", "schedule_options": {}, "warmup": 0.0},
)

field_technique(
    "cyclical",
    Card(
        does="The learning rate goes straight up from the share `low` of `lr` to `lr` and down again, `cycles` times.",
        cost="None.",
        helps="Where the best rate is not known: every cycle passes it twice.",
        hurts="The rate ends at `low`, not near zero, so the end is less calm than that of one cycle or a cosine. The "
        "paper's abstract names it, its code runs one cycle. Excludes other schedules.",
        source="Smith 2017; equals torch.optim.lr_scheduler.CyclicLR, mode triangular.",
    ),
    {"schedule": "triangular", "schedule_options": {"cycles": 4, "low": 0.1}},
    {"schedule": "cosine", "schedule_options": {}, "warmup": 0.0},
)


field_technique(
    "label_smoothing",
    Card(
        does="Replaces the target 1 for the right class by 1 - a + a / K and gives a / K to each of the K classes.",
        cost="None that can be measured.",
        helps="Networks that fit their training data almost completely; scores become less extreme.",
        hurts="Networks of a few thousand parameters, which underfit. The training loss no longer goes to zero.",
        source="Szegedy et al. 2016; torch.nn.CrossEntropyLoss(label_smoothing=).",
    ),
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.0},
)


def smoothed(labels: Tensor, num_classes: int, amount: float = 0.1) -> Tensor:
    """Return smoothed targets, for losses that take shares instead of class numbers.

    Args:
        labels: (n,) int64.
        num_classes: K.
        amount: a, the share that is spread over all classes.

    Returns:
        (n, K) float32, rows summing to 1.
    """
    hard = torch.nn.functional.one_hot(labels, num_classes).float()
    return torch.lerp(hard, torch.full_like(hard, 1 / num_classes), amount)


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
