"""Progressive resizing: the first part of a training sees smaller images."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from convwright.architecture.capture.graph import first_line
from convwright.edits.structure import Structure
from convwright.errors import RecipeError
from convwright.training.techniques.structural import options_of
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


def progressive_resizing(
    images: Tensor, progress: float, *, start: float = 0.5, full: float = 0.8, stages: int = 4, multiple: int = 4
) -> Tensor:
    """Return a batch at the size for this point of the training.

    Args:
        images: (n, c, h, w) float, normalised.
        progress: Share of the training that is done, from 0 to 1.
        start: First size as a part of the full one.
        full: Share of the training after which images have their full size.
        stages: Number of sizes before the full one.
        multiple: Sizes are rounded to multiples of this; the full size is not.

    Returns:
        (n, c, h', w') in the same memory format; the batch itself at full size.

    Raises:
        RecipeError: An option is out of its range.

    Examples:
        >>> import torch
        >>> from convwright.training.techniques.progressive_resizing import progressive_resizing
        >>> batch = torch.zeros(2, 3, 32, 32)
        >>> [progressive_resizing(batch, done).shape[-1] for done in (0, 0.2, 0.4, 0.6, 0.8)]
        [16, 20, 24, 28, 32]
    """
    options = options_of(ProgressiveResizing, start=start, full=full, stages=stages, multiple=multiple)
    return resized(images, options.size(progress, (images.shape[-2], images.shape[-1])))


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (n, c, h, w) at another size (h', w'): bilinear, antialiased, in the same memory format."""
    if tuple(images.shape[-2:]) == size:
        return images
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    smaller = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return smaller.contiguous(memory_format=layout)


@technique(
    "progressive_resizing",
    Card(
        does="Trains on smaller images first: their size rises in steps from `start` to the full one, which is reached "
        "after the share `full` of the training.",
        cost="Less than nothing: convolutions at half the side do a quarter of the arithmetic.",
        helps="Long trainings on images of 64 pixels and more.",
        hurts="Small images (28 to 32 pixels) lose what tells classes apart; few epochs leave too little time at full "
        "size. Not for networks that fix their input size.",
        source="Howard 2018 (fast.ai); MosaicML Composer's ProgressiveResizing.",
    ),
)
class ProgressiveResizing(Technique):
    """Options of progressive resizing.

    Attributes:
        start: First size as a part of the full one.
        full: Share of the training after which images have their full size.
        stages: Number of sizes before the full one.
        multiple: Sizes are rounded to multiples of this; the full size is not.
    """

    classifies: ClassVar[bool] = True

    start: float = Field(0.5, gt=0, lt=1)
    full: float = Field(0.8, gt=0, lt=1)
    stages: int = Field(4, ge=1, le=1000)
    multiple: int = Field(4, ge=1)

    def size(self, progress: float, whole: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the images after a share `progress` of the training.

        Args:
            progress: From 0 to 1.
            whole: Height and width of the full images.
        """
        stage = int(max(progress, 0.0) / self.full * self.stages + 1e-9)
        if stage >= self.stages:
            return whole
        part = self.start + (1 - self.start) * stage / self.stages
        height, width = (min(side, self.multiple * max(1, round(part * side / self.multiple))) for side in whole)
        return height, width

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Run the network at the smallest size and at the full one; warn where all sizes are the full one.

        Raises:
            RecipeError: The network does not take images of the smallest size.
        """
        channels, *sides = setting.data.shape
        whole = (sides[0], sides[1])
        smallest = self.size(0.0, whole)
        if smallest == whole:
            return (
                f"techniques.progressive_resizing has no effect: start={self.start:g} and multiple={self.multiple} "
                f"leave all images at {whole[0]}x{whole[1]}",
            )
        example = setting.arch.example_input
        images = torch.zeros(2, channels, *whole, dtype=example.dtype, device=example.device)
        reason = _why_not(setting.arch.model, images, smallest)
        if reason:
            raise RecipeError(
                f"recipe field techniques.progressive_resizing.start={self.start:g}: the network does not take images "
                f"of {smallest[0]}x{smallest[1]} ({reason}); raise start, or put the technique global_pool before "
                "this one"
            )
        return ()

    def effect(self, training: Training) -> ResizingEffect:
        """Return the effect on batches."""
        return ResizingEffect(self, training.setting.steps)


class ResizingEffect(Effect):
    """Makes the batches of the first part of a training smaller."""

    def __init__(self, options: ProgressiveResizing, steps: int) -> None:
        self.options, self.steps = options, steps

    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch at the size of its step."""
        size = self.options.size(step / self.steps, (images.shape[-2], images.shape[-1]))
        return resized(images, size), targets


def _why_not(network: nn.Module, images: Tensor, size: tuple[int, int]) -> str:
    """Return why a network cannot be trained on images at a smaller size; empty if it can. A copy is run."""
    model, _ = Structure(()).operate(network)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            smaller, whole = model(resized(images, size)), model(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        return first_line(error).rstrip(".")
    if isinstance(whole, Tensor) and smaller.shape != whole.shape:  # a head that keeps positions apart
        return f"its scores have the shape {tuple(smaller.shape)} there, else {tuple(whole.shape)}"
    return ""
