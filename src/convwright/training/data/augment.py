"""Per-sample augmentation of whole batches: crop with padding, flip and cutout, vectorised.

Crop and flip are index arithmetic: every sample gets its own list of source rows and columns, and
one gather fetches all pixels while they are still bytes. Conversion and normalisation happen once,
afterwards. All randomness comes from `draw`: a batch is a function of (images, indices, draws).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from convwright.errors import RecipeError

PaddingMode = Literal["reflect", "zero"]


@dataclass(frozen=True)
class Augment:
    """What may happen to a training image.

    Attributes:
        crop_padding: Pixels added per side before a random crop back to the original size; 0: off.
        padding_mode: What the added pixels show: the mirrored image (edge not repeated) or zeros.
        hflip: Mirror left to right with probability one half.
        cutout: Side of the square that is set to the mean, in pixels; 0: off. Its centre is uniform
            over the image, so the square may be cut by the border.
        resized_crop: Least and largest share of the image's area, and least and largest width / height, of a crop
            that is resized to the whole image; None: off.
    """

    crop_padding: int = 0
    padding_mode: PaddingMode = "reflect"
    hflip: bool = False
    cutout: int = 0
    resized_crop: tuple[float, float, float, float] | None = None

    @property
    def active(self) -> bool:
        """Whether anything happens at all."""
        return bool(self.crop_padding or self.hflip or self.cutout or self.resized_crop)

    def check(self, height: int, width: int) -> None:
        """Refuse what cannot be done to images of this size.

        Raises:
            RecipeError: The reflected border or the cutout is larger than the image allows.
        """
        side = min(height, width)
        if self.padding_mode == "reflect" and self.crop_padding >= side:
            raise RecipeError(
                f"crop_padding={self.crop_padding} cannot be reflected in {height}x{width} images; "
                f"use at most {side - 1}, or padding_mode=zero"
            )
        if self.cutout > side:
            raise RecipeError(f"cutout={self.cutout} is larger than {height}x{width} images; use at most {side}")


@dataclass(frozen=True, eq=False)
class Draws:
    """The random decisions for one batch, each of shape (batch,), on the CPU.

    Attributes:
        top: Vertical shift of the crop, in -padding..padding.
        left: Horizontal shift of the crop, in -padding..padding.
        flip: Whether the cropped image is mirrored (bool).
        row: Row of the cutout's centre.
        column: Column of the cutout's centre.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    row: Tensor
    column: Tensor

    def taken(self, positions: Tensor) -> Draws:
        """Return the decisions for the images at `positions` of the batch."""
        return Draws(*(getattr(self, part.name)[positions] for part in fields(self)))


def draw(augment: Augment, count: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Draw the decisions for `count` images of `height` x `width` from a CPU generator."""

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    padding = augment.crop_padding
    return Draws(
        top=whole(-padding, padding + 1),
        left=whole(-padding, padding + 1),
        flip=whole(0, 2).bool() if augment.hflip else torch.zeros(count, dtype=torch.bool),
        row=whole(0, height),
        column=whole(0, width),
    )


def gather(images: Tensor, indices: Tensor, augment: Augment | None, draws: Draws | None) -> Tensor:
    """Fetch the chosen images, cropped and flipped.

    Args:
        images: (n, c, h, w) of any dtype, stored channels_last.
        indices: (batch,) positions, on the device of `images`.
        augment: What to do; None fetches the images as they are.
        draws: The decisions for this batch; needed with `augment`.

    Returns:
        (batch, c, h, w), same dtype and device, stored channels_last.
    """
    n, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1)
    if augment is None or draws is None or not (augment.crop_padding or augment.hflip):
        return pixels.index_select(0, indices).permute(0, 3, 1, 2)
    top, left, flip = (part.to(images.device)[:, None] for part in (draws.top, draws.left, draws.flip))
    across = torch.arange(width, device=images.device)
    if augment.hflip:  # a flip reads the crop from right to left
        across = torch.where(flip, width - 1 - across, across)
    rows, columns = torch.arange(height, device=images.device) + top, across + left
    row_out, column_out = (rows < 0) | (rows >= height), (columns < 0) | (columns >= width)
    rows, columns = _mirrored(rows, height), _mirrored(columns, width)
    flat = (indices[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    fetched = pixels.reshape(n * height * width, channels).index_select(0, flat.view(-1))
    batch = fetched.view(len(indices), height, width, channels)
    if augment.padding_mode == "zero":
        batch.masked_fill_((row_out[:, :, None] | column_out[:, None, :])[..., None], 0)
    return batch.permute(0, 3, 1, 2)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Fold positions outside 0..size-1 back; clamped because zero padding may exceed the image."""
    last = size - 1
    return (last - (last - positions.abs()).abs()).clamp_(0, last)


def square_mask(row: Tensor, column: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return the (batch, 1, h, w) mask of one square per image, clipped at the border.

    Args:
        row: (batch,) of the squares' centres.
        column: (batch,) of the squares' centres.
        side: Of the squares, in pixels; an even one reaches one pixel further up and left of its centre.
        height: Of the images.
        width: Of the images.
    """
    top, left = row[:, None] - side // 2, column[:, None] - side // 2
    rows, columns = torch.arange(height), torch.arange(width)
    row_in = (rows >= top) & (rows < top + side)
    column_in = (columns >= left) & (columns < left + side)
    return (row_in[:, :, None] & column_in[:, None, :])[:, None]


def resized_crop(image: Tensor, augment: Augment, size: tuple[int, int], seed: int) -> Tensor:
    """Return a random part of one image at another size, drawn as torchvision's RandomResizedCrop draws it.

    Args:
        image: (c, h, w) of any size and number type.
        augment: With a `resized_crop`.
        size: (height, width) to resize the part to.
        seed: The part depends on it and on nothing else.
    """
    from torchvision.transforms import v2

    assert augment.resized_crop is not None
    least, largest, narrow, wide = augment.resized_crop
    crop = v2.RandomResizedCrop(size, (least, largest), (narrow, wide), antialias=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cropped: Tensor = crop(image)
        return cropped


def normalise(batch: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (batch - mean) / std as float32; mean and std have shape (1, c, 1, 1).

    Bytes are taken as 0..255 and mean and std in units of 0..1, the convention of torchvision;
    float images are taken as they are.
    """
    scale = 255.0 if batch.dtype == torch.uint8 else 1.0
    return torch.addcmul(-mean / std, batch, 1.0 / (scale * std))
