"""Sets of labelled images: in memory as bytes, or streamed from a map-style data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convwright.errors import DataError

if TYPE_CHECKING:
    from convwright.training.data.folders import ImageFiles


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Labelled images held in memory.

    Attributes:
        images: (n, c, h, w), uint8, or float32 where the user's data set gives floats. Stored
            channels_last, so that one pixel's channels are fetched together.
        labels: (n,) int64.
        mean: Per channel, in units of 0..1 (of the values themselves for float images).
        std: Per channel, same units.
        files: What the images were read from, to read them at another size; None: it is not known.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: ImageFiles | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Tensor) -> ArrayImages:
        """Return a copy of the images at `indices` (m,)."""
        chosen = self.images[indices].contiguous(memory_format=torch.channels_last)
        files = self.files.subset(indices) if self.files is not None else None
        return replace(self, images=chosen, labels=self.labels[indices], files=files)


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
        return len(self.labels)

    def subset(self, indices: Tensor) -> StreamImages:
        """Return the images at `indices` (m,), without reading them."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


Images: TypeAlias = ArrayImages | StreamImages
Stats: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel


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
        if isinstance(value, Image.Image) and value.mode not in ("L", "RGB", "RGBA"):
            value = eight_bits(value, source)  # a palette's numbers are no brightness
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


def eight_bits(image: Image.Image, source: str) -> Image.Image:
    """Return an image as 8 bits of grey ("L") or colour ("RGB"), what is transparent on white.

    Args:
        image: Of any mode; 16 bits are scaled, not cut off.
        source: Named in errors.

    Raises:
        DataError: Its pixels are no whole numbers of at most 16 bits, so that nobody knows what is white.
    """
    if image.mode[0] in "IF":
        values = np.array(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise DataError(f"{source}: {values.dtype} pixels from {values.min()} to {values.max()}; save it as 8 bit")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("L" if grey else "RGB")


def class_number(label: Any, source: str) -> int:
    """Return the label of one sample as an int; a float or a tensor of one number is fine if it is whole.

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


def count_classes(labels: Tensor, source: str) -> int:
    """Return the number of classes where nothing but the training labels says it.

    Raises:
        DataError: Classes are missing in between, or each image has a class of its own: such labels are probably
            numbers of another kind.
    """
    present: list[int] = torch.unique(labels).tolist()
    known, count = set(present), present[-1] + 1
    missing = list(islice((n for n in range(count) if n not in known), 4))
    if missing and present[0] >= 0:  # negative ones are refused as such
        few = ", ".join(map(str, missing[:3])) + ", ..." * (len(missing) > 3)
        raise DataError(
            f"{source}: labels go up to {count - 1} and none is {few}; number the classes 0, 1, 2, ... "
            f"(numpy.unique(labels, return_inverse=True)[1] does), or name all {count} classes: class_names in an "
            "npz, num_classes of load_data"
        )
    if count == len(labels) > 2:
        raise DataError(
            f"{source}: {count} images of {count} classes, one each; give several images of a class, or say that it is "
            f"so with num_classes={count}"
        )
    return max(count, 1)


def check_classes(labels: Tensor, source: str) -> None:
    """Refuse training labels of a single class: any network would be right on all images.

    Raises:
        DataError: Names the source and the class.
    """
    if int(labels[0]) >= 0 and bool((labels == labels[0]).all()):
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
