"""What a network is trained for: batches, a loss, and metrics of which one ranks networks.

`Task` is what a user derives: four methods, of which two have no default. All of training, search, saliency, repair,
distillation and reports use it and nothing else. `ImageData`, which `load_data` returns, is the task of classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture.capture.graph import kept_modes
from convwright.architecture.capture.pytrees import samples_in, tensors_of
from convwright.errors import DataError
from convwright.ranking import ACCURACY, Metric

if TYPE_CHECKING:
    from convwright.training.data.augment import Augment
    from convwright.training.recipe.recipe import Recipe

Batch: TypeAlias = tuple[Any, Any]
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Metrics:
    """How good a network is on `samples` samples.

    Attributes:
        accuracy: The metric that ranks, so that more is better: of classification the accuracy in 0..1.
        loss: Mean loss, of classification the cross-entropy in nats without smoothing; None where it is not computed.
        samples: How many samples it was judged on.
        by_class: Of classification, images and those told right for each class; empty from a checkpoint.
        values: All metrics by name.
        error: Standard error of the metric that ranks, where the task knows it.
    """

    accuracy: float
    loss: float | None
    samples: int
    by_class: tuple[tuple[int, int], ...] = field(default=(), repr=False, compare=False)
    values: Mapping[str, float] = field(default_factory=dict, compare=False)
    error: float | None = field(default=None, compare=False)

    @property
    def stderr(self) -> float:
        """Standard error of the metric that ranks; of the accuracy, the binomial one. 0 where it is not known."""
        if self.values:
            return self.error or 0.0
        return float((self.accuracy * (1 - self.accuracy) / max(self.samples, 1)) ** 0.5)


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """How one pass over a part is to go; tasks that make their own batches may pass over it.

    Attributes:
        batch_size: Samples per batch.
        shuffle: Whether in a new order.
        seed: What order and augmentation follow.
        augment: Random changes of the recipe; None: none.
        workers: Processes that read samples; None: as the task likes.
    """

    batch_size: int
    shuffle: bool = False
    seed: int = 0
    augment: Augment | None = None
    workers: int | None = None


class BaseTask:
    """What the trainer, saliency, repair, distillation and reports ask of a task.

    Attributes:
        kind: The kind of task.
        own_batches: Whether it makes its own batches, whatever a recipe says of their size and of augmentation.
        metric: What networks are ranked by.
        guess: Loss of a network that only guesses; None: it is not known.
        num_classes: Number of classes; 0: there are none.
        class_names: One name per class.
        mean: Per channel, what was subtracted from the inputs.
        std: Per channel, what they were divided by.
    """

    kind: ClassVar[str] = ""
    own_batches: ClassVar[bool] = False
    metric: Metric = ACCURACY

    if TYPE_CHECKING:  # what a subclass has as a field, or computes
        name: str
        train: Any
        val: Any
        class_names: tuple[str, ...]

        @property
        def guess(self) -> float | None: ...  # noqa: D102
        @property
        def num_classes(self) -> int: ...  # noqa: D102
        @property
        def shape(self) -> tuple[int, int, int]: ...  # noqa: D102
        @property
        def mean(self) -> tuple[float, ...]: ...  # noqa: D102
        @property
        def std(self) -> tuple[float, ...]: ...  # noqa: D102
        @property
        def has_test(self) -> bool: ...  # noqa: D102
        @property
        def test(self) -> Any: ...  # noqa: D102

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over the samples of a batch, shape ()."""
        raise NotImplementedError

    def training_loss(self, recipe: Recipe) -> Loss:
        """Return the loss that a recipe trains with."""
        return self.loss

    def right(self, output: Any, targets: Any) -> Tensor | None:
        """Return how many samples of a training batch are right; None: that is not counted."""
        return None

    def watched(self, model: nn.Module) -> nn.Module:
        """Return the module whose output distillation compares; the network, unless its outputs say too little."""
        return model

    def outputs(self, output: Any) -> Sequence[Tensor]:
        """Return what distillation compares of that module's output: all its tensors of real numbers."""
        return [tensor for _, tensor in tensors_of(output) if tensor.is_floating_point()]

    def distance(self, own: Sequence[Tensor], taught: Sequence[Tensor], temperature: float) -> Tensor:
        """Return how far the outputs of a network are from those of its teacher, shape ().

        By default the smooth L1 distance, in the units of the outputs: as steep as usual losses of labels at most, so
        that a rate that suits the labels suits it, too. Relative to the teacher's outputs it would be steeper the less
        these say, and means near 0 would break the training down.
        """
        parts = [F.smooth_l1_loss(one.float(), other.float()) for one, other in zip(own, taught, strict=True)]
        return torch.stack(parts).mean()

    def example(self, device: torch.device | None = None) -> Any:
        """Return what a network is read with: a tensor, or a nest of them."""
        raise NotImplementedError

    def check(self, model: nn.Module) -> None:
        """Refuse a network that this task cannot train, by a first look at two samples.

        Raises:
            DataError: Names the task, the part and the remedy.
        """


@dataclass(frozen=True, eq=False)
class TaskPart:
    """One part of a task's data.

    Attributes:
        task: The `Task`.
        name: ``train``, ``val`` or ``test``.
        count: Only so many samples; None: all.
        seed: Which samples these are.
    """

    task: Any
    name: str
    count: int | None = None
    seed: int = 0

    def __len__(self) -> int:
        whole: int = sum(self.task.sizes(self.name, 1))
        return whole if self.count is None else min(whole, self.count)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the first image among the inputs."""
        shape: tuple[int, int, int] = self.task.shape
        return shape

    def sizes(self, batch_size: int) -> list[int]:
        """Return how many samples each batch of a pass has."""
        sizes, left = self.task.sizes(self.name, batch_size), len(self)
        kept = []
        for size in sizes:
            if left > 0:
                kept.append(min(size, left))
                left -= size
        return kept

    def drawn(self, count: int, seed: int) -> TaskPart:
        """Return a part of so many samples, the same ones for the same seed."""
        return replace(self, count=count, seed=seed)


def checked(batch: Any, where: str) -> Batch:
    """Return a batch, a pair of inputs and targets.

    Raises:
        DataError: It is none, or holds no sample.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"{where} is a {type(batch).__name__}; give a pair (inputs, targets)")
    if not samples_in(batch[0]):
        raise DataError(f"{where} holds no sample; leave empty batches out")
    return batch[0], batch[1]


def first_of(batches: Any, name: str) -> Batch:
    """Return the first training batch of a task called `name`.

    Raises:
        DataError: There is none, or what is given is no pair.
    """
    if not hasattr(batches, "__iter__"):
        raise DataError(f"{name}: train: batches are a {type(batches).__name__}; return a loader or list of batches")
    if (batch := next(iter(batches), None)) is None:
        raise DataError(f"{name}: train has no batches; look at drop_last and batch_size of its loader")
    return checked(batch, f"{name}: train: batch 0")


@contextmanager
def kept_output(module: nn.Module) -> Any:
    """Yield a list that holds the last output of a module while it is used."""
    kept: list[Any] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        kept[:] = [output]

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def training_code(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a network runs the code of its training, with what draws or averages in eval mode.

    Networks that compute their losses themselves, such as torchvision's detectors, do so in training mode alone.
    """
    return _training_code(model) if not model.training else nullcontext()


@contextmanager
def _training_code(model: nn.Module) -> Any:
    fixed = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    with kept_modes(model):
        for module in model.modules():
            module.training = not isinstance(module, fixed)
        yield
