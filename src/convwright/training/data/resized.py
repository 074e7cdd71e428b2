"""The same images at another size: what a network at another resolution is trained and judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from convwright.architecture import Architecture
from convwright.training.data.data import ImageData
from convwright.training.data.folders import ImageFiles
from convwright.training.data.images import ArrayImages
from convwright.training.tasks.base import BaseTask, TaskPart

_Data = TypeVar("_Data", bound=BaseTask)
_CHUNK = 1024  # images at a time: they are floats while they are resized


def resized_images(images: Any, size: tuple[int, int] | None) -> Any:
    """Return images at another height and width; themselves if they have it.

    Images of a folder are read from their files again, so that a larger size shows more; others are resized as they
    are: bilinear, antialiased; a part of another task stays as it is. Mean and standard deviation stay those of the
    given images, so that a pixel's value means the same at every size.
    """
    if size is None or isinstance(images, TaskPart) or tuple(images.shape[1:]) == tuple(size):
        return images
    if isinstance(images, ArrayImages) and images.files is not None:
        return images.files.resized(size).images((images.mean, images.std))
    if isinstance(images, ArrayImages):
        parts = [_resized(chunk, size) for chunk in torch.split(images.images, _CHUNK)]
        return replace(images, images=torch.cat(parts).contiguous(memory_format=torch.channels_last))
    shape = (images.shape[0], *size)
    if isinstance(images.read, ImageFiles):
        return replace(images, read=images.read.resized(size), shape=shape)
    # Random crops are cut from the whole image, not from the resized one.
    read = partial(_read, images.read, size)
    return replace(images, read=read, shape=shape, read_whole=images.read_whole or images.read)


def image_size(network: Architecture) -> tuple[int, int] | None:
    """Return height and width of the images that a network was read at; None: its first input is no image."""
    shape = network.example_input.shape
    return (int(shape[-2]), int(shape[-1])) if len(shape) == 4 else None


def resized_data(data: _Data, size: tuple[int, int] | None) -> _Data:
    """Return labelled images at another height and width; themselves if they have it, and any other task."""
    if not isinstance(data, ImageData) or size is None or tuple(data.shape[1:]) == tuple(size):
        return data
    return data.mapped(lambda images: resized_images(images, size))  # type: ignore[return-value]


def _read(read: Callable[[int], Tensor], size: tuple[int, int], position: int) -> Tensor:
    return _resized(read(position)[None], size)[0]


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    found = interpolate(images.float(), size, mode="bilinear", antialias=True)
    return found.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else found.to(images.dtype)
