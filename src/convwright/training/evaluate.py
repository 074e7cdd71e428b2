"""Accuracy and loss of a network on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.repair.batch_norm import kept_modes
from convwright.training.data.images import Images
from convwright.training.data.loader import Loader
from convwright.training.settings import autocast, single_tensor


@dataclass(frozen=True)
class Metrics:
    """Results on `samples` images: accuracy in 0..1, mean cross-entropy in nats (no smoothing).

    `by_class` has images and those told right for each class; empty where the result comes from a checkpoint.
    """

    accuracy: float
    loss: float
    samples: int
    by_class: tuple[tuple[int, int], ...] = field(default=(), repr=False, compare=False)

    @property
    def stderr(self) -> float:
        """Standard error of the accuracy (binomial)."""
        return float((self.accuracy * (1 - self.accuracy) / max(self.samples, 1)) ** 0.5)


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 500,
    precision: str = "fp32",
    channels_last: bool = False,
    workers: int | None = None,
) -> Metrics:
    """Judge `model` in eval mode, on the device its parameters are on; nothing of it changes.

    Args:
        model: Returns (batch, classes) scores, alone or as the only tensor of a dict or tuple.
        images: The set; normalised by its own mean and std.
        batch_size: Images per forward pass.
        precision: fp32 or bf16 (mixed).
        channels_last: Layout of the batches.
        workers: Processes that read a streamed set.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loader = Loader(images, batch_size, shuffle=False, device=device, channels_last=channels_last, workers=workers)
    return evaluate_batches(model, loader, precision)


def evaluate_batches(
    model: nn.Module, loader: Loader, precision: str, total: Callable[[Tensor], Tensor] | None = None
) -> Metrics:
    """Judge `model` on the batches of one epoch of `loader`; sums stay on the device.

    Args:
        model: As for `evaluate`.
        loader: Its whole set counts, though it may yield one process's shard of it.
        precision: fp32 or bf16.
        total: Adds a tensor up over all processes; None: there is one.
    """
    loss = torch.zeros((), dtype=torch.float64, device=loader.device)
    counts = torch.bincount(loader.images.labels)
    right = torch.zeros(len(counts), dtype=torch.int64, device=loader.device)
    if loader.device.type == "mps":
        loss = loss.float()  # Metal has no float64
    with eval_mode(model), torch.no_grad(), autocast(loader.device, precision):
        for images, labels in loader:
            scores = single_tensor(model(images)).float()
            loss += F.cross_entropy(scores, labels, reduction="sum")
            right.index_add_(0, labels, (scores.argmax(1) == labels).long())
    if total is not None:
        loss, right = total(loss), total(right)
    count, told = len(loader.images), right.tolist()
    by_class = tuple(zip(counts.tolist(), told, strict=True))
    return Metrics(sum(told) / count, loss.item() / count, count, by_class)


def count_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many of the (batch, classes) scores are largest at the label, as a tensor."""
    return (scores.argmax(1) == labels).sum()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode; every module gets its own mode back."""
    with kept_modes(model):
        model.eval()
        yield
