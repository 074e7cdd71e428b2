"""From a batch to gradients: in parts, over processes, with soft or hard targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from convwright.training.evaluate import count_right
from convwright.training.settings import single_tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's part of a batch.

    Attributes:
        images: (n, c, h, w) float32.
        targets: (n,) class numbers or (n, classes) shares: what the loss compares with.
        labels: (n,) class numbers: what the accuracy compares with.
        whole: Images of the batch over all processes.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    whole: int

    def taken(self, rank: int, count: int) -> Batch:
        """Return the `rank`-th of `count` parts."""
        return Batch(self.images[rank::count], self.targets[rank::count], self.labels[rank::count], self.whole)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Computes the gradients of a batch; they are those of the whole batch, however it is divided.

    Attributes:
        fabric: Runs the backward pass.
        module: The network as Fabric wrapped it.
        criterion: Mean loss over the images of its input.
        parts: How many parts are computed one after the other.
        changes: Each takes images, the network's output and the loss of a part, and returns another loss.
    """

    fabric: Fabric
    module: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    parts: int
    changes: Sequence[Callable[[Tensor, Any, Tensor], Tensor]] = ()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of `batch` to the parameters.

        Returns:
            This process's share of the mean loss over the whole batch, and how many of its images are right.
        """
        count = len(batch.images)
        # Fabric averages gradients over processes; a part's share of the batch may differ from 1 / processes.
        processes = self.fabric.world_size
        loss = torch.zeros((), device=batch.images.device)
        right = torch.zeros((), dtype=torch.int64, device=batch.images.device)
        pieces = [part.chunk(self.parts) for part in (batch.images, batch.targets, batch.labels)]
        last = len(pieces[0]) - 1
        for index, (images, targets, labels) in enumerate(zip(*pieces, strict=True)):
            with self.fabric.no_backward_sync(self.module, enabled=processes > 1 and index < last):  # type: ignore[arg-type]
                output = self.module(images)
                scores = single_tensor(output)
                mean = self.criterion(scores, targets)
                for change in self.changes:
                    mean = change(images, output, mean)
                share = len(images) / batch.whole
                self.fabric.backward(mean if count == len(images) == batch.whole else mean * (share * processes))
            with torch.no_grad():
                loss += mean.detach() * share
                right += count_right(scores, labels)
        return loss, right
