"""Batches of a task: where the network is, in its layout, with random changes that follow the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from convwright.architecture.capture.pytrees import mapped, rows_of, samples_in
from convwright.errors import DataError
from convwright.training.data.augment import Augment
from convwright.training.data.images import Images
from convwright.training.data.loader import Loader, Resumable, derived_seed, seeded
from convwright.training.tasks.base import Batch, BatchOrder, TaskPart, checked


class TaskLoader(Resumable):
    """Iterate over the batches of one part; one iteration is one epoch.

    Python's and NumPy's generators are seeded at the start of each epoch and put back at its end, so that random
    changes in the user's own code follow (seed, epoch); torch's own for the first batch, with which an order is drawn.

    Args:
        part: What is read.
        batch_size: Samples per batch, for tasks that let it be chosen.
        augment: Random changes, likewise.
        shuffle: Whether each epoch has an order of its own, likewise.
        seed: With the same seed the batches are the same.
        device: Where tensors are moved.
        channels_last: Layout of the inputs.
        workers: Processes that read samples.
        shard: (rank, count): yield the rank-th of `count` parts of every batch.
    """

    def __init__(
        self,
        part: TaskPart,
        batch_size: int,
        *,
        augment: Augment | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        drawn = part.count is not None
        super().__init__(part.seed if drawn else seed)
        self.part, self.shuffle = part, shuffle or drawn
        self.order = BatchOrder(batch_size, self.shuffle, seed, augment, workers)
        self.device, self.channels_last, self.shard = torch.device(device), channels_last, shard
        self.sizes = part.sizes(batch_size)
        self._structure: Any = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left in the current epoch."""
        epoch, first, task = self.epoch, self.position, self.part.task
        seed = derived_seed(self.seed, epoch)
        with seeded(seed, torch_too=not self.shuffle or self.part.count is not None):
            batches = iter(task.epoch(self.part.name, replace(self.order, seed=seed)))
            with seeded(seed):  # an order that is drawn at the first batch is that of all processes, whatever they drew
                begun = next(batches, None)
            batches = chain([begun] if begun is not None else [], batches)
            for position in range(len(self)):
                batch = next(batches, None)
                if batch is None:
                    raise DataError(
                        f"{task.name}: {self.part.name} has {position} batches in epoch {epoch + 1} and had {len(self)}"
                    )
                if position < first:
                    continue
                batch = self._checked(batch, position)
                if self.part.count is not None:
                    batch = _some(batch, slice(self.sizes[position]))
                self.sizes[position] = samples_in(batch[0])
                last = position + 1 == len(self)
                self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
                yield self._here(batch)

    def _checked(self, batch: Any, position: int) -> Batch:
        where = f"{self.part.task.name}: {self.part.name}: batch {position}"
        pair = checked(batch, where)
        found = structure(pair)
        if self._structure not in (None, found):
            raise DataError(f"{where} is {found}, and the first one was {self._structure}; give batches of one kind")
        self._structure = found
        return pair

    def _here(self, batch: Batch) -> Batch:
        rank, count = self.shard
        if count > 1:
            batch = _some(batch, slice(rank, None, count))
        inputs, targets = moved(batch[0], self.device), moved(batch[1], self.device)
        if self.channels_last:
            inputs = mapped(inputs, lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
        return inputs, targets


def _some(batch: Batch, which: slice) -> Batch:
    return rows_of(batch[0], which), rows_of(batch[1], which)


def loader_of(part: Images | TaskPart, batch_size: int, **how: Any) -> Any:
    """Return the batches of a part of any task: a `Loader` of labelled images, else a `TaskLoader`."""
    return TaskLoader(part, batch_size, **how) if isinstance(part, TaskPart) else Loader(part, batch_size, **how)


def drawn(part: Images | TaskPart, count: int, seed: int, *, ordered: bool = False) -> Any:
    """Return so many samples of a part, the same ones for the same seed; all where there are not so many."""
    if isinstance(part, TaskPart):
        return part.drawn(count, seed)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:count]
    return part.subset(order.sort().values if ordered else order)


def moved(value: Any, device: torch.device) -> Any:
    """Return a nest with its tensors on a device."""

    def there(inner: Any) -> Any:
        return inner.to(device) if isinstance(inner, Tensor) else moved(inner, device)

    return mapped(value, there, lambda held: [there(each) for each in held])


def structure(value: Any) -> Any:
    """Return the kinds, names and numbers of axes of a nest, of a list those of its first entry."""
    if isinstance(value, tuple):
        return tuple(structure(each) for each in value)
    if isinstance(value, dict):
        return {key: structure(each) for key, each in value.items()}
    if isinstance(value, list):
        return [structure(value[0])] if value else []
    return f"{str(value.dtype).removeprefix('torch.')} {value.ndim}-d" if isinstance(value, Tensor) else type(value)
