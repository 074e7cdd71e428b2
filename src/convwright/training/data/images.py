"""Sets of labelled images: in memory as bytes, or streamed from a map-style data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from convwright.errors import DataError


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Labelled images held in memory.

    Attributes:
        images: (n, c, h, w), uint8, or float32 where the user's data set gives floats. Stored
            channels_last, so that one pixel's channels are fetched together.
        labels: (n,) int64.
        mean: Per channel, in units of 0..1 (of the values themselves for float images).
        std: Per channel, same units.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Tensor) -> ArrayImages:
        """Return a copy of the images at `indices` (m,)."""
        chosen = self.images[indices].contiguous(memory_format=torch.channels_last)
        return ArrayImages(chosen, self.labels[indices], self.mean, self.std)


@dataclass(frozen=True, eq=False)
class StreamImages:
    """Labelled images that are read anew for each batch, by worker processes.

    Attributes:
        read: Position -> (c, h, w) tensor; uint8, or float32.
        indices: (n,) positions in the source.
        labels: (n,) int64, in the order of `indices`.
        shape: (channels, height, width) of one image.
        mean: Per channel, in units of 0..1 (of the values themselves for float images).
        std: Per channel, same units.
        read_whole: As `read`, before resizing: images of any size, for random crops. None: `read` does not resize.
    """

    read: Callable[[int], Tensor]
    indices: Tensor
    labels: Tensor
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read_whole: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: Tensor) -> StreamImages:
        """Return the images at `indices` (m,), without reading them."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


Images: TypeAlias = ArrayImages | StreamImages


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel.

    Args:
        images: (n, c, h, w); uint8 gives units of 0..1 (exact, by a histogram), float32 gives
            mean 0 and std 1: float images come as their owner normalised them.
    """
    channels = images.shape[1]
    if images.dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(channels):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        mean = float(share @ levels)
        deviation = float((share @ (levels - mean).square()).sqrt())
        means.append(mean)
        stds.append(deviation or 1.0)  # a constant channel is only shifted
    return tuple(means), tuple(stds)


def as_image(value: Any, source: str) -> Tensor:
    """Return one sample's image as a (c, h, w) uint8 or float32 tensor.

    Args:
        value: A tensor (c, h, w) or (h, w), a PIL image, or an array (h, w) or (h, w, c).
        source: Named in errors.

    Raises:
        DataError: The value is none of these.
    """
    if isinstance(value, Tensor):
        image = value
    else:
        array = np.array(value)  # a copy: PIL hands out read-only memory
        if array.dtype.kind not in "uif":
            raise DataError(f"{source}: {type(value).__name__} is not an image; give a tensor or PIL")
        image = torch.from_numpy(array)
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            f"{source}: an image of shape {tuple(image.shape)} and type {image.dtype}; "
            "give (c, h, w) tensors of uint8 or float32"
        )
    return image if image.dtype == torch.uint8 else image.float()


def class_number(label: Any, source: str) -> int:
    """Return the label of one sample as an int; a float or a tensor of one number is fine if it is whole.

    Args:
        label: What the data set gave.
        source: The sample, named in errors.

    Raises:
        DataError: A fraction, NaN, a vector, or no number: `int` would make class 0 of a regression target.
    """
    try:
        value = label.item() if hasattr(label, "item") else label
        if (number := int(value)) == value:
            return number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise DataError(
        f"{source} is not a pair (image, whole number): its label is {shorten(str(label), 60)}; "
        "number the classes 0, 1, 2, ... (of one-hot labels, take labels.argmax(1))"
    )


def check_classes(labels: Tensor, source: str) -> None:
    """Refuse training labels of a single class: any network would be right on all images.

    Raises:
        DataError: Names the source and the class.
    """
    if bool((labels == labels[0]).all()):
        raise DataError(
            f"{source}: all labels are {int(labels[0])}; give images of two or more classes, numbered 0, 1, 2, ..."
        )


def check_labels(labels: Tensor, num_classes: int, source: str) -> None:
    """Refuse labels outside 0..num_classes-1.

    Raises:
        DataError: Names the source, the position and the value of the first bad label.
    """
    bad = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(bad):
        position = int(bad[0])
        raise DataError(
            f"{source}: label {int(labels[position])} at position {position} is outside "
            f"the classes 0..{num_classes - 1}; number the classes from 0"
        )


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions into a training and a validation part, class by class.

    Args:
        labels: (n,) int64.
        fraction: Share of every class that goes to validation, rounded; a class with two or more
            samples keeps at least one on each side.
        seed: The split depends on it and on nothing else.

    Returns:
        Two sorted, disjoint position tensors that together cover 0..n-1.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        size = len(members)
        count = min(max(round(size * fraction), 1), size - 1) if fraction > 0 else 0
        held[members[torch.randperm(size, generator=generator)[:count]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
