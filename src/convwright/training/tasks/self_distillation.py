"""No labels: a network learns what its teacher says."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture.capture.pytrees import rows_of, run_model, samples_in, tensors_of
from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.tasks.base import Batch
from convwright.training.tasks.dataset import DatasetTask, mean_of
from convwright.training.tasks.losses import distillation_loss
from convwright.training.tasks.sources import folder_images, npz


class SelfDistillation(DatasetTask):
    """Images without labels: how far outputs are from those of a teacher, such as the untouched network.

    A sample is an input, or a pair whose target is not looked at. Sources: ``folder:`` of images, and ``npz:``.

    Args:
        data: As of `DatasetTask`.
        teacher: The trained network; a copy of it is kept.
        softmax: Whether outputs are scores of classes along axis 1: then the divergence of their probabilities is the
            loss, and agreement on the likeliest class ranks. Else both are the squared difference, relative to the
            teacher's square.
        options: As of `DatasetTask`.
    """

    kind: ClassVar[str] = "self-distillation"
    sources = {"folder": folder_images, "npz": npz}  # noqa: RUF012

    def __init__(self, data: Any, teacher: nn.Module | None = None, *, softmax: bool = False, **options: Any) -> None:
        if teacher is None:
            raise DataError("self-distillation: there is no teacher; in Python, give SelfDistillation(data, network)")
        super().__init__(data, **options)
        self.teacher, self.softmax = copy.deepcopy(teacher).eval().requires_grad_(False), softmax
        self.metric = Metric("agreement") if softmax else Metric("distance", higher_is_better=False, unit="")

    def pair(self, item: Any, where: str) -> tuple[Any, Any]:
        return (item[0] if isinstance(item, tuple | list) and len(item) == 2 else item), None

    def target(self, value: Any, size: tuple[int, int], where: str) -> None: ...

    def distance(self, own: Sequence[Tensor], taught: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        pairs = [(one.float(), other.float()) for one, other in zip(own, taught, strict=True)]
        if not self.softmax:
            away = [(a - b).square().mean() / b.square().mean().clamp_min(1e-12) for a, b in pairs]
            return torch.stack(away).mean()
        return torch.stack([distillation_loss(a, b, temperature) for a, b in pairs]).mean()

    def _both(self, model: nn.Module, inputs: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the outputs of network and teacher."""
        own, teacher = self.outputs(self.forward(model, inputs)), self.teacher.to(tensors_of(inputs)[0][1].device)
        with torch.no_grad():
            return tuple(own), tuple(self.outputs(run_model(teacher, inputs)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        own, taught = self._both(model, batch[0])
        if model.training or not torch.is_grad_enabled():
            return self.distance(own, taught)
        # Gradients in eval mode are those of saliency. At the teacher itself the distance has no slope: its curvature
        # tells what a channel is worth, and is the mean of the squared slope towards outputs drawn from the teacher's
        # distribution (Fisher information).
        if self.softmax:
            noise = [-torch.empty_like(each).exponential_().log() for each in taught]  # Gumbel's: the largest is a draw
            drawn = [(each + more).argmax(1) for each, more in zip(taught, noise, strict=True)]
            return torch.stack([F.cross_entropy(a.float(), b) for a, b in zip(own, drawn, strict=True)]).mean()
        return self.distance(own, [each + each.square().mean().sqrt() * torch.randn_like(each) for each in taught])

    def metrics(self, model: nn.Module, part: str) -> dict[str, float]:
        rows = list[Tensor]()
        for inputs, _ in self.on_device(model, part):
            both = self._both(model, inputs)
            for place in range(samples_in(inputs)):
                own, taught = rows_of(both, slice(place, place + 1))
                loss, pairs = self.distance(own, taught), zip(own, taught, strict=True)
                alike = [(a.argmax(1) == b.argmax(1)).float().mean() for a, b in pairs] if self.softmax else [loss]
                rows.append(torch.stack([loss, torch.stack(alike).mean()]))
        found = torch.stack(rows)
        return {"loss": float(found[:, 0].mean()), **mean_of(self.metric.name, found[:, 1])}
