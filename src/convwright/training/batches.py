"""From a batch to gradients: in parts, over processes, with soft or hard targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture.capture.pytrees import rows_of, samples_in
from convwright.training.tasks.base import BaseTask, Loss, kept_output


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's part of a batch.

    Attributes:
        inputs: (n, c, h, w) float32 images, or whatever the task gives.
        targets: (n,) class numbers or (n, classes) shares: what the loss compares with.
        labels: (n,) class numbers: what the accuracy compares with.
        whole: Samples of the batch over all processes.
    """

    inputs: Any
    targets: Any
    labels: Any
    whole: int

    def __len__(self) -> int:
        return samples_in(self.inputs)

    def taken(self, which: slice) -> Batch:
        """Return some samples of it."""
        inputs, targets, labels = rows_of((self.inputs, self.targets, self.labels), which)
        return Batch(inputs, targets, labels, self.whole)

    def parts(self, count: int) -> list[Batch]:
        """Return it in so many parts, the first ones the larger."""
        size = -(-len(self) // min(count, max(1, len(self))))
        return [self.taken(slice(start, start + size)) for start in range(0, len(self), max(1, size))]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Computes the gradients of a batch; they are those of the whole batch, however it is divided.

    Attributes:
        fabric: Runs the backward pass.
        module: The network as Fabric wrapped it.
        task: Counts what is right.
        loss: Mean loss over the samples of a batch.
        parts: How many parts are computed one after the other.
        changes: Each takes inputs, the output that the task compares and the loss of a part, and returns another loss.
    """

    fabric: Fabric
    module: nn.Module
    task: BaseTask
    loss: Loss
    parts: int
    changes: Sequence[Callable[[Any, Any, Tensor], Tensor]] = ()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of `batch` to the parameters.

        Returns:
            This process's share of the mean loss over the whole batch, and how many of its samples are right.
        """
        watched = self.task.watched(self.module)
        with kept_output(watched) as kept:
            return self._summed(batch, kept)

    def _summed(self, batch: Batch, kept: list[Any]) -> tuple[Tensor, Tensor]:
        count, device = len(batch), self.fabric.device
        # Fabric averages gradients over processes; a part's share of the batch may differ from 1 / processes.
        processes = self.fabric.world_size
        loss = torch.zeros((), device=device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        pieces = batch.parts(self.parts) if self.parts > 1 else [batch]
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            with self.fabric.no_backward_sync(self.module, enabled=processes > 1 and not last):  # type: ignore[arg-type]
                mean = self.loss(self.module, (piece.inputs, piece.targets))
                for change in self.changes:
                    mean = change(piece.inputs, kept[0], mean)
                share = len(piece) / batch.whole
                self.fabric.backward(mean if count == len(piece) == batch.whole else mean * (share * processes))
            with torch.no_grad():
                loss += mean.detach() * share
                hits = self.task.right(kept[0], piece.labels)
                right += 0 if hits is None else hits
        return loss, right


@contextmanager
def synchronised(model: nn.Module, processes: int) -> Iterator[None]:
    """Let every batch norm of `model` normalise by the batch of all processes; with one process do nothing.

    torch's own SyncBatchNorm refuses tensors on the CPU, and replaces the user's modules. Here the modules stay, and
    only their ``forward`` is exchanged while training runs.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if processes > 1 else []
    try:
        for norm in norms:
            norm.__dict__["forward"] = partial(_forward, norm)
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _forward(norm: _BatchNorm, images: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, images)
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    mean, variance, count = batch_statistics(values)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        seen = norm.num_batches_tracked.add_(1) if norm.num_batches_tracked is not None else None
        share = norm.momentum
        if share is None:  # the cumulative average
            share = 1.0 / float(seen) if seen is not None else 0.0
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    shape = (1, -1, *(1,) * (values.ndim - 2))
    normal = (values - mean.view(shape)) * torch.rsqrt(variance.view(shape) + norm.eps)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(images.dtype)


def batch_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (c,), biased variance (c,) and count () of (n, c, ...) values over all processes.

    Gradients flow through all three sums, as they would in one process.
    """
    dims = [0, *range(2, values.ndim)]
    own = torch.tensor(float(values.numel() // values.shape[1]), device=values.device)
    # One message for sum and count; the squares are summed around the mean, else large means would cancel them.
    summed: Tensor = _Sum.apply(torch.cat([values.sum(dims), own.to(values.dtype)[None]]))
    mean, count = summed[:-1] / summed[-1], summed[-1].detach()
    shape = (1, -1, *(1,) * (values.ndim - 2))
    squares: Tensor = _Sum.apply((values - mean.view(shape)).square().sum(dims))
    return mean, squares / count, count


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; every process's loss depends on it, so gradients add up, too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _added(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _added(gradient)


def _added(part: Tensor) -> Tensor:
    whole = part.contiguous().clone()
    torch.distributed.all_reduce(whole)
    return whole
