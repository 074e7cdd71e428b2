"""Batches in a seeded order, with a state so small that resuming is exact at any batch.

Order and augmentation of batch `k` in epoch `e` are drawn from generators seeded by (seed, e, k).
So the generators' states are themselves functions of (seed, epoch, position): these three integers
are the whole state, and a resumed loader continues bit for bit.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convwright.errors import DataError
from convwright.training.data.augment import Augment, draw, gather, normalise, resized_crop, square_mask
from convwright.training.data.images import ArrayImages, Images, StreamImages

Batch = tuple[Tensor, Tensor]
_IMAGES = 2**32  # a stream of seeds, which become an image's own when its position is mixed in


def derived_seed(*parts: int) -> int:
    """Mix integers into one seed below 2**63; the same parts give the same seed everywhere."""
    words = np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class Resumable:
    """Where a pass over data is: three integers are all that the next batch depends on.

    Attributes:
        seed: Of order and random changes.
        epoch: The present one, from 0.
        position: Of the next batch in it.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch, self.position = seed, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the state: what the next batch depends on."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken."""
        self.seed, self.epoch, self.position = (state[k] for k in ("seed", "epoch", "position"))


class Loader(Resumable):
    """Iterate over normalised batches; one iteration is (the rest of) one epoch.

    Args:
        images: The set; a set in memory is moved to `device` once.
        batch_size: Images per batch. The last batch of an epoch is smaller; a rest of one image
            joins the batch before, because batch normalisation cannot train on one.
        augment: Random changes, or None.
        shuffle: A new order in every epoch, or always the stored order.
        seed: With the same seed the batches are the same.
        device: Where batches are made.
        channels_last: Layout of the batches; else contiguous.
        workers: Processes that read a streamed set; None: one per core, at most 8.
        shard: (rank, count): yield the rank-th of `count` parts of every batch. Order and augmentation are drawn
            for the whole batch, so that the parts together are the batch of a single process.

    Yields:
        (float32 (batch, c, h, w), int64 (batch,)) on `device`.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        augment: Augment | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
        workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        if augment is not None:
            augment.check(*images.shape[1:])
        self.images = images
        self.augment = augment if augment is not None and augment.active else None
        super().__init__(seed)
        self.shuffle = shuffle
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.shard = shard
        self.sizes = batch_sizes(len(images), batch_size)
        self._labels = images.labels.to(self.device)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (images.mean, images.std)
        )
        self._pixels = images.images.to(self.device) if isinstance(images, ArrayImages) else None
        # The batches still to be read, as lists of (position, seed); replaced before each epoch. A list of its own, not
        # the loader: a cycle would let the garbage collector take the queues before the workers were told to stop.
        self._order: list[list[tuple[int, int]]] = []
        self._stream = _stream_loader(images, self.augment, self._order, workers)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left in the current epoch."""
        epoch, first = self.epoch, self.position
        parts, raws = self.parts()[first:], None
        if self._stream is not None:  # the workers start on these batches
            base = derived_seed(self.seed, epoch, _IMAGES)
            self._order[:] = [[(int(k), base ^ int(k)) for k in self._own(part)] for part in parts]
            raws = iter(self._stream)
        for position, part in enumerate(parts, start=first):
            raw = None if raws is None else next_batch(raws)
            batch = self._finish(epoch, position, part, raw)
            # The state already points behind this batch while the caller works on it.
            last = position + 1 == len(self)
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
            yield batch

    def parts(self) -> tuple[Tensor, ...]:
        """Return the positions of every batch of the current epoch, on the CPU."""
        count = len(self.images)
        if not self.shuffle:
            return torch.split(torch.arange(count), self.sizes)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        return torch.split(torch.randperm(count, generator=generator), self.sizes)

    def _own(self, part: Tensor) -> Tensor:
        rank, count = self.shard
        return part[rank::count]

    def _resized(self, pixels: Tensor, epoch: int, part: Tensor) -> Tensor:
        """Crop and resize images in memory (batch, c, h, w); workers do it for those that they read."""
        if self.augment is None or self.augment.resized_crop is None:
            return pixels
        base, size = derived_seed(self.seed, epoch, _IMAGES), (pixels.shape[2], pixels.shape[3])
        crops = [resized_crop(x, self.augment, size, base ^ int(k)) for x, k in zip(pixels, part, strict=True)]
        return _stack(crops)

    def _finish(self, epoch: int, position: int, part: Tensor, raw: Tensor | None) -> Batch:
        size = self.images.shape[1:]
        draws = None
        if self.augment is not None:
            seed = derived_seed(self.seed, epoch, position)
            draws = draw(self.augment, len(part), *size, torch.Generator().manual_seed(seed))
            draws = draws.taken(self._own(torch.arange(len(part))))
        part = self._own(part)
        indices = part.to(self.device)
        if raw is None:
            assert self._pixels is not None
            pixels = self._resized(gather(self._pixels, indices, self.augment, draws), epoch, part)
        else:
            everything = torch.arange(len(part), device=self.device)
            pixels = gather(raw.to(self.device), everything, self.augment, draws)
        if not self.channels_last:
            # Strides of one channel fit both layouts, and torch takes them for channels_last: a view writes them anew.
            pixels = pixels.contiguous().flatten().view(pixels.shape)
        batch = normalise(pixels, self._mean, self._std)
        if self.augment is not None and draws is not None and self.augment.cutout:
            mask = square_mask(draws.row, draws.column, self.augment.cutout, *size)
            batch.masked_fill_(mask.to(self.device), 0.0)
        return batch, self._labels.index_select(0, indices)


@contextmanager
def seeded(seed: int, *, torch_too: bool = True) -> Iterator[None]:
    """Seed the generators of Python and NumPy, and torch's if asked; all are put back."""
    python, numpy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch_too:
        torch.default_generator.manual_seed(seed)  # the CPU's alone: others would stay as seeded
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch_too:
            torch.set_rng_state(ours)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one epoch; a rest of one image joins the batch before."""
    sizes = [batch_size] * (count // batch_size)
    rest = count % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


class _Reads(Dataset[Tensor]):
    """The streamed set as a torch data set whose keys are (position, seed)."""

    def __init__(self, images: StreamImages, augment: Augment | None) -> None:
        self.images = images
        self.augment = augment if augment is not None and augment.resized_crop else None

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        position, seed = key
        images, index = self.images, int(self.images.indices[position])
        read = images.read if self.augment is None else images.read_whole or images.read
        # Random transforms of the user's own data set become functions of (seed, epoch, image),
        # whichever worker runs them, and leave the process's generator alone.
        with seeded(seed):
            image = read(index)
        if self.augment is None:
            return image
        return resized_crop(image, self.augment, images.shape[1:], seed)


def _stream_loader(
    images: Images, augment: Augment | None, order: list[list[tuple[int, int]]], workers: int | None
) -> DataLoader[Tensor] | None:
    if isinstance(images, ArrayImages):
        return None
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    return DataLoader(
        _Reads(images, augment),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else each epoch would draw from the global generator
    )


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images).contiguous(memory_format=torch.channels_last)


def next_batch(raws: Iterator[Any]) -> Any:
    """Fetch a batch; an error of a worker arrives with its traceback and leaves in one line."""
    try:
        return next(raws)
    except DataError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(last.removeprefix("convwright.errors.DataError: ")) from error
