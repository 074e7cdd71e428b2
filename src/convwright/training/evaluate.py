"""Accuracy and loss of a network on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture.capture.graph import kept_modes
from convwright.devices import device_of
from convwright.training.data.images import Images
from convwright.training.settings import autocast, single_tensor
from convwright.training.tasks.base import Metrics, TaskPart
from convwright.training.tasks.loader import TaskLoader, loader_of

if TYPE_CHECKING:
    from convwright.training.data.loader import Loader


def evaluate(
    model: nn.Module,
    images: Images | TaskPart,
    *,
    batch_size: int = 500,
    precision: str = "fp32",
    channels_last: bool = False,
    workers: int | None = None,
) -> Metrics:
    """Judge `model` in eval mode, on the device its parameters are on; nothing of it changes.

    Args:
        model: Of labelled images, returns (batch, classes) scores, alone or as the only tensor of a dict or tuple.
        images: Labelled images, normalised by their own mean and std; or a part of a task.
        batch_size: Images per forward pass.
        precision: fp32, or bf16 or fp16 (mixed).
        channels_last: Layout of the batches.
        workers: Processes that read a streamed set.
    """
    how = {"shuffle": False, "device": device_of(model), "channels_last": channels_last, "workers": workers}
    return judged(model, loader_of(images, batch_size, **how), precision)


def judged(model: nn.Module, loader: Any, precision: str, total: Callable[[Tensor], Tensor] | None = None) -> Metrics:
    """Judge a network on the part that a loader has, in eval mode.

    Args:
        model: As for `evaluate`.
        loader: What `loader_of` returned.
        precision: fp32, bf16 or fp16.
        total: Adds a tensor of a classifier's up over all processes; None: there is one.
    """
    with eval_mode(model), torch.no_grad(), autocast(loader.device, precision):
        if isinstance(loader, TaskLoader):
            found: Metrics = loader.part.task.judge(model, loader)
            return found
        return image_metrics(model, loader, total)


def image_metrics(model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None) -> Metrics:
    """Judge a classifier on the batches of one epoch of `loader`; sums stay on the device.

    Args:
        model: In eval mode.
        loader: Its whole set counts, though it may yield one process's shard of it.
        total: Adds a tensor up over all processes; None: there is one.
    """
    loss = torch.zeros((), dtype=torch.float64, device=loader.device)
    counts = torch.bincount(loader.images.labels)
    right = torch.zeros(len(counts), dtype=torch.int64, device=loader.device)
    if loader.device.type == "mps":
        loss = loss.float()  # Metal has no float64
    for images, labels in loader:
        scores = single_tensor(model(images)).float()
        loss += F.cross_entropy(scores, labels, reduction="sum")
        right.index_add_(0, labels, (scores.argmax(1) == labels).long())
    if total is not None:
        loss, right = total(loss), total(right)
    count, told = len(loader.images), right.tolist()
    by_class = tuple(zip(counts.tolist(), told, strict=True))
    return Metrics(sum(told) / count, loss.item() / count, count, by_class)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode; every module gets its own mode back."""
    with kept_modes(model):
        model.eval()
        yield
