"""The class that a user derives a task from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from convwright.architecture.capture.graph import kept_modes
from convwright.architecture.capture.pytrees import rows_of, run_model, samples_in, tensors_of
from convwright.devices import device_of
from convwright.errors import DataError, first_line
from convwright.ranking import Metric
from convwright.training.tasks.base import BaseTask, Batch, BatchOrder, Metrics, TaskPart, first_of
from convwright.training.tasks.loader import TaskLoader, moved


class Task(BaseTask):
    """A task of a user's own: derive, and write what your training loop has.

    Only `batches` and `loss` have no default. A batch is a pair (inputs, targets). Inputs are a tensor, a tuple of all
    arguments of the network, or a dictionary of them by name; a list holds one entry per sample, such as images of
    several sizes. Targets may be any nest. Tensors are moved to the network's device.

    Attributes:
        name: What messages and records call it.
        kind: The kind of task.
        parts: The parts that `batches` has: ``train``, and if there are such parts ``val`` and ``test``.
        metric: What networks are ranked by; by default the loss.

    Examples:
        >>> class Ages(cw.Task):  # doctest: +SKIP
        ...     metric = cw.Metric("mae", higher_is_better=False, unit="years")
        ...
        ...     def batches(self, part):
        ...         return loaders[part]
        ...
        ...     def loss(self, model, batch):
        ...         return torch.nn.functional.l1_loss(model(batch[0]), batch[1])
        ...
        ...     def metrics(self, model, part):
        ...         return {"mae": mean_error(model, loaders[part])}
    """

    kind: ClassVar[str] = "own"
    own_batches: ClassVar[bool] = True
    name: str = ""
    parts: Sequence[str] = ("train", "val")
    metric: Metric = Metric("loss", higher_is_better=False, unit="")
    class_names: tuple[str, ...] = ()
    guess: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__dict__.get("name", cls.__name__)
        if isinstance(cls.metric, str):
            raise DataError(f"{cls.name}: metric is {cls.metric!r}; give cw.Metric({cls.metric!r}, ...)")

    # ------------------------------------------------------------------ what a user writes

    def batches(self, part: str) -> Iterable[Batch]:
        """Return the batches of one pass over a part: ``train``, ``val`` or ``test``."""
        raise DataError(f"{self.name}: a task needs a method batches(part) that returns pairs (inputs, targets)")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over the samples of a batch, shape ()."""
        raise DataError(f"{self.name}: a task needs a method loss(model, batch) that returns one number")

    def metrics(self, model: nn.Module, part: str) -> Mapping[str, float]:
        """Return what says how good a network is, with the metric that ranks among it; by default the mean loss.

        It is called in eval mode, without gradients, in the precision of the training. ``NAME_stderr`` may hold the
        standard error of a metric. ``loss``, if it is there, is shown after each epoch.
        """
        total, count = 0.0, 0
        for batch in self.on_device(model, part):
            samples = samples_in(batch)
            total, count = total + float(self.loss(model, batch)) * samples, count + samples
        return {"loss": total / max(count, 1)}

    def example_inputs(self) -> Any:
        """Return what the network is read with; by default the first sample that there is to train on."""
        return rows_of(self._first[0], slice(1))

    # ------------------------------------------------------------------ what is there already

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Call a network with the inputs of a batch: a tuple is all arguments, a dictionary names them."""
        inner: Any = model.module if isinstance(model, _FabricModule | nn.parallel.DistributedDataParallel) else None
        return run_model(model, inputs, inner)

    def on_device(self, model: nn.Module, part: str, batch_size: int = 32) -> Iterable[Batch]:
        """Yield the batches of a part where a network is, in the layout of its weights."""
        last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
        return TaskLoader(TaskPart(self, part), batch_size, shuffle=False, device=device_of(model), channels_last=last)

    def epoch(self, part: str, order: BatchOrder) -> Iterable[Batch]:
        """Return the batches of one pass; a task that makes its own batches need not follow the order."""
        return self.batches(part)

    def sizes(self, part: str, batch_size: int) -> list[int]:
        """Return how many samples each batch of a pass has."""
        known = self.__dict__.setdefault("_sizes", {})
        if part not in known:
            known[part] = _sizes(self.batches(part))
            if not known[part]:
                raise DataError(f"{self.name}: {part} has no batches")
        return list(known[part])

    @cached_property
    def _first(self) -> Batch:
        return first_of(self.batches("train"), self.name)

    @property
    def train(self) -> TaskPart:
        """What it is trained on."""
        return TaskPart(self, "train")

    @property
    def val(self) -> TaskPart | None:
        """What epochs and searches are judged by."""
        return TaskPart(self, "val") if "val" in self.parts else None

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        return "test" in self.parts

    @property
    def test(self) -> TaskPart:
        """The test part."""
        return TaskPart(self, "test")

    @property
    def num_classes(self) -> int:
        """Number of classes; 0: there are none."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the first image among the inputs."""
        for _, tensor in tensors_of(self.example_inputs()):
            if tensor.ndim >= 3:
                return tuple(tensor.shape[-3:])  # type: ignore[return-value]
        return (1, 1, 1)

    @override
    def example(self, device: torch.device | None = None) -> Any:
        return moved(self.example_inputs(), device or torch.device("cpu"))

    def judge(self, model: nn.Module, loader: TaskLoader) -> Metrics:
        """Judge a network, in eval mode and without gradients, on the part that a loader has."""
        part = loader.part.name
        found = self._numbers(self.metrics(model, part), part)
        if self.metric.name not in found:
            raise DataError(
                f"{self.name}: metrics of {part} have no {self.metric.name}, which ranks networks; "
                f"there are {', '.join(found) or 'none'}"
            )
        value = found[self.metric.name]
        if not math.isfinite(value):
            said = "NaN" if math.isnan(value) else f"{value:g}"
            raise DataError(f"{self.name}: {self.metric.name} of {part} is {said}; it must be a finite number")
        error = found.get(f"{self.metric.name}_stderr")
        return Metrics(self.metric.score(value), found.get("loss"), sum(loader.sizes), (), found, error)

    def _numbers(self, metrics: Any, part: str) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            raise DataError(f"{self.name}: metrics of {part} are a {type(metrics).__name__}; give numbers by name")
        found = {}
        for name, value in metrics.items():
            try:
                found[name] = float(value)
            except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
                raise DataError(f"{self.name}: {name} of {part} is {value!r:.80}; give one number") from error
        return found

    @override
    def check(self, model: nn.Module) -> None:
        batch = moved(rows_of(self._first, slice(2)), device_of(model))
        with kept_modes(model), torch.random.fork_rng(devices=[]):
            model.eval()
            try:
                loss = self.loss(model, batch)
            except DataError:
                raise
            except Exception as error:  # the user's own code may raise anything
                raise DataError(
                    f"{self.name}: train: the loss of the first two samples fails in eval mode: "
                    f"{first_line(error)}; inputs are "
                    f"{_shapes(batch[0])}, targets {_shapes(batch[1])}"
                ) from error
        if not isinstance(loss, Tensor) or loss.ndim:
            what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise DataError(f"{self.name}: train: the loss of a batch is {what}; return its mean, one number")
        if not math.isfinite(loss.item()):
            raise DataError(
                f"{self.name}: train: the loss of the first two samples is {loss.item()}; look at their values"
            )


def _sizes(batches: Iterable[Batch]) -> list[int]:
    """Return the sizes of batches, without reading them where torch's loader knows them."""
    if isinstance(batches, DataLoader) and isinstance(batches.batch_size, int):
        try:
            count, size = len(batches.sampler), batches.batch_size  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            rest = [count % size] if count % size and not batches.drop_last else []
            return [size] * (count // size) + rest
    return [samples_in(batch) for batch in batches]


def _shapes(value: Any) -> str:
    found = [f"{path}{': ' if path else ''}{tuple(tensor.shape)}" for path, tensor in tensors_of(value)]
    return ", ".join(found[:4]) + ", ..." * (len(found) > 4) or type(value).__name__
