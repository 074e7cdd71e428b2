"""Batch norm re-estimated on training images: which ones, and run as the network is judged."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convwright.devices import device_of
from convwright.repair import reestimate_batch_norm
from convwright.training.data.images import Images
from convwright.training.data.loader import derived_seed
from convwright.training.settings import autocast
from convwright.training.tasks.base import TaskPart
from convwright.training.tasks.loader import drawn, loader_of

IMAGES = 1024
_BATCH = 128  # the variance is a mean over batches: of few images each it would be another one
_STREAM = 2**35  # of random numbers


def reestimate(
    model: nn.Module,
    images: Images | TaskPart,
    *,
    precision: str = "fp32",
    channels_last: bool = False,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    frozen: bool = True,
    count: int = IMAGES,
) -> int:
    """Replace the running statistics of a network's batch norms by averages over training images.

    The images are the same for every network of a run, and not augmented: the network is judged on such images.

    Args:
        model: On its device, in the layout of its batches.
        images: The training images.
        precision: As it is judged.
        channels_last: Layout of the batches.
        workers: Processes that read a streamed set.
        shard: Number of this process, and of all of them, where norms normalise by the batch of all.
        frozen: As of `reestimate_batch_norm`.
        count: So many images are used; all where there are not so many.

    Returns:
        The number of images; 0 where there are no running statistics.
    """
    device = device_of(model)
    part = drawn(images, count, derived_seed(0, _STREAM))
    loader = loader_of(
        part, _BATCH, shuffle=False, device=device, channels_last=channels_last, workers=workers, shard=shard
    )
    with autocast(device, precision):
        return reestimate_batch_norm(model, (batch for batch, _ in loader), frozen=frozen)


def calibration(
    images: Images | TaskPart,
    count: int,
    device: torch.device | None = None,
    batch: int = 32,
    *,
    channels_last: bool = False,
) -> list[Any]:
    """Return training images for repair, without augmentation: the same ones for every network of a run.

    Args:
        images: The training images.
        count: So many of them; all where there are not so many.
        device: Where they are to lie; None: on the CPU.
        batch: Images per batch.
        channels_last: Layout of the batches.

    Returns:
        Batches (batch, c, h, w), or of whatever inputs the task has.
    """
    part, where = drawn(images, count, derived_seed(0, _STREAM)), device or torch.device("cpu")
    return [found for found, _ in loader_of(part, batch, shuffle=False, device=where, channels_last=channels_last)]
