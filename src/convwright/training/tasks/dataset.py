"""Tasks whose samples come from map-style data sets: order, random changes, normalisation and batches."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from typing_extensions import Self, override

from convwright.architecture.capture.pytrees import joined, mapped, samples_in, tensors_of
from convwright.errors import ConvwrightError, DataError, first_line
from convwright.training.data.augment import Augment, square_mask
from convwright.training.data.images import as_image, statistics
from convwright.training.data.loader import batch_sizes, derived_seed, next_batch, seeded
from convwright.training.settings import single_tensor
from convwright.training.tasks.base import Batch, BatchOrder, first_of
from convwright.training.tasks.sources import Source, opened
from convwright.training.tasks.task import Task

_SAMPLE = 64  # images that mean and standard deviation are taken from


class DatasetTask(Task):
    """What the ready-made tasks have in common.

    Batches follow the recipe: its batch size, its seed, and those of its random changes that the targets can follow.
    What is random in the data set and in `transforms` follows (seed, epoch, sample), however many workers read.

    Args:
        data: ``folder:PATH`` and the like (see the task), a map-style data set of (input, target), (train, test) or
            (train, val, test) of them, or a dictionary of them by part. An input is an image (PIL, array or tensor), or
            a tuple or dictionary of the network's arguments. A `DataLoader` yields its batches as they are.
        transforms: Random changes of training samples, such as a transform of torchvision's v2: called with (input,
            target), whose images, masks, boxes and key points are `tv_tensors`.
        size: (height, width) that samples are resized to; None: as they are.
        mean: Subtracted from images, per channel in units of 0..1; None: of training images of bytes their own, else
            none; (): none.
        std: What they are divided by, likewise.
        classes: Names of the classes, or their number; None: as the data say.
        workers: Processes that read samples; 0: this one.
        val_fraction: Share of the training samples that becomes the validation part, where there is none.
        split_seed: Which samples these are.

    Raises:
        DataError: The data cannot be read or are wrong; names the task, the part and the item.
    """

    sources: ClassVar[Mapping[str, Source]] = {}
    follows: ClassVar[frozenset[str]] = frozenset({"hflip", "crop_padding", "resized_crop", "cutout"})
    reflects: ClassVar[bool] = True  # whether targets can be padded by their mirror image
    normalises: ClassVar[bool] = True
    fill: Any = 0

    def __init__(
        self,
        data: Any,
        *,
        transforms: Callable[..., Any] | None = None,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: int | Sequence[str] | None = None,
        workers: int = 0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        self.name, self.data, names = opened(data, self.kind, self.sources, val_fraction, split_seed)
        self.parts, self.transforms, self.size, self.workers = tuple(self.data), transforms, size, workers
        known = names if classes is None else classes
        self.class_names = tuple(map(str, range(known) if isinstance(known, int) else known))
        found = self._statistics() if mean is None and self.normalises else (mean or (), std or ())
        self.mean, self.std = map(tuple, found)

    # ------------------------------------------------------------------ what a task writes

    def pair(self, item: Any, where: str) -> tuple[Any, Any]:
        """Return input and target of an item of a data set."""
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where} is a {type(item).__name__}; give a pair (input, target)")
        return item[0], item[1]

    def target(self, value: Any, size: tuple[int, int], where: str) -> Any:
        """Check the target of an image of a size (height, width), and wrap it for transforms."""
        raise NotImplementedError

    def finished(self, inputs: Any, target: Any) -> tuple[Any, Any]:
        """Return inputs and target as network and loss take them."""
        return mapped(inputs, self.seen), mapped(target, plain)

    def loss_of(self, output: Any, targets: Any) -> Tensor:
        """Return the mean loss of what the network returns, shape ()."""
        raise NotImplementedError

    def measured(self, output: Any, targets: Any) -> Tensor:
        """Return numbers of each sample of a batch, shape (n, ...), from which `summary` makes metrics."""
        raise NotImplementedError

    def summary(self, rows: Tensor) -> dict[str, float]:
        """Return the metrics of all samples."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what is there already

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss_of(self.forward(model, batch[0]), batch[1])

    @override
    def metrics(self, model: nn.Module, part: str) -> Mapping[str, float]:
        total, rows = 0.0, list[Tensor]()
        for inputs, targets in self.on_device(model, part):
            output = self.forward(model, inputs)
            total += float(self.loss_of(output, targets)) * samples_in(inputs)
            rows.append(self.measured(output, targets))
        found = torch.cat(rows)
        return {"loss": total / len(found), **self.summary(found)}

    @override
    def check(self, model: nn.Module) -> None:
        library()  # which the first judgement needs
        super().check(model)

    @override
    def batches(self, part: str) -> Iterable[Batch]:
        return self.epoch(part, BatchOrder(32))

    @override
    def epoch(self, part: str, order: BatchOrder) -> Iterable[Batch]:
        if self._loads(part):
            batches: Iterable[Batch] = self.data[part]
            return batches
        count, generator = len(self.data[part]), torch.Generator().manual_seed(order.seed)
        positions = torch.randperm(count, generator=generator) if order.shuffle else torch.arange(count)
        chosen = [each.tolist() for each in torch.split(positions, self.sizes(part, order.batch_size))]
        workers = self.workers if order.workers is None else order.workers
        how: dict[str, Any] = {"batch_sampler": chosen, "collate_fn": partial(self.collated, part)}
        read = iter(
            DataLoader(_PartSamples(self, part, order), num_workers=workers, generator=torch.Generator(), **how)
        )
        return (next_batch(read) for _ in chosen)

    @override
    def sizes(self, part: str, batch_size: int) -> list[int]:
        return super().sizes(part, batch_size) if self._loads(part) else batch_sizes(len(self.data[part]), batch_size)

    def _loads(self, part: str) -> bool:
        """Whether the user's own loader makes the batches."""
        return not hasattr(self.data[part], "__getitem__")

    @cached_property
    def _first(self) -> Batch:
        return first_of(self.epoch("train", BatchOrder(2, workers=0)), self.name)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the task with another mean and standard deviation per channel, where it normalises at all."""
        other = copy.copy(self)
        if self.mean:
            other.mean, other.std = tuple(mean), tuple(std)
            other.__dict__.pop("_first", None)
        return other

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of some training images; nothing of floats."""
        data, seen = self.data["train"], list[Tensor]()
        for position in range(0, 0 if self._loads("train") else len(data), max(len(data) // _SAMPLE, 1)):
            where = f"{self.name}: train[{position}]"
            images = images_in(wrapped(self.pair(data[position], where)[0], where))
            if not images or images[0].dtype != torch.uint8:
                return (), ()
            seen.append(plain(images[0]).flatten(1))
        return statistics(torch.cat(seen, 1)[None, :, :, None]) if seen else ((), ())

    def sample(self, part: str, position: int, order: BatchOrder) -> tuple[Any, Any]:
        """Return inputs and target of one sample, changed as the order says."""
        where = f"{self.name}: {part}[{position}]"
        with seeded(derived_seed(order.seed, position), torch_too=True):
            try:
                inputs, target = self.pair(self.data[part][position], where)
                inputs = wrapped(inputs, where)
                target = self.target(target, size_of(inputs), where)
                if self.size is not None:
                    inputs, target = v2.Resize(self.size, antialias=True)(inputs, target)
                if order.augment is not None:
                    inputs, target = (inputs, target) if self.transforms is None else self.transforms(inputs, target)
                    inputs, target = self.augmented(inputs, target, order.augment)
                inputs, target = self.finished(inputs, target)
                side = order.augment.cutout if order.augment is not None and "cutout" in self.follows else 0
                return (_cut(inputs, side) if side else inputs), target
            except ConvwrightError:
                raise
            except Exception as error:  # the user's own code may raise anything
                raise DataError(f"{where}: {type(error).__name__}: {first_line(error)}") from error

    def augmented(self, inputs: Any, target: Any, augment: Augment) -> tuple[Any, Any]:
        """Change a sample at random as the recipe says, as far as its target can follow."""
        size, steps = size_of(inputs), list[Any]()
        if augment.crop_padding and "crop_padding" in self.follows:
            augment.check(*size)
            mode = "reflect" if augment.padding_mode == "reflect" and self.reflects else "constant"
            steps.append(v2.RandomCrop(size, augment.crop_padding, fill=self.fill, padding_mode=mode))
        if augment.resized_crop is not None and "resized_crop" in self.follows:
            steps.append(v2.RandomResizedCrop(size, augment.resized_crop[:2], augment.resized_crop[2:], antialias=True))
        if augment.hflip and "hflip" in self.follows:
            steps.append(v2.RandomHorizontalFlip())
        for step in steps:
            inputs, target = step(inputs, target)
        return inputs, target

    def seen(self, image: Tensor) -> Tensor:
        """Return an image among inputs as float32, normalised; any other tensor as it is."""
        if not isinstance(image, tv_tensors.Image):
            return plain(image)
        values = plain(tv.to_dtype(image, torch.float32, scale=True))
        known = bool(self.mean) and len(self.mean) == len(values)
        return tv.normalize(values, list(self.mean), list(self.std)) if known else values

    def collated(self, part: str, samples: Sequence[tuple[int, Any, Any]]) -> Batch:
        """Return samples (position, inputs, target) as a batch; they must be alike in structure and shape."""
        shapes = [[(path, tuple(tensor.shape)) for path, tensor in tensors_of(each[1:])] for each in samples]
        for (position, *_), found in zip(samples, shapes, strict=True):
            if found != shapes[0]:
                this, other = (", ".join(str(shape) for _, shape in each) for each in (found, shapes[0]))
                raise DataError(
                    f"{self.name}: {part}[{position}]: input and target are {this}, and those of "
                    f"{part}[{samples[0][0]}] {other}; make all alike, images with size=(height, width)"
                )
        inputs, targets = (joined([mapped(each[place], lambda t: t[None]) for each in samples]) for place in (1, 2))
        return inputs, targets


class _PartSamples(Dataset[tuple[int, Any, Any]]):
    """The samples of a part as torch's loader reads them, in any process."""

    def __init__(self, task: DatasetTask, part: str, order: BatchOrder) -> None:
        self.task, self.part, self.order = task, part, order

    def __getitem__(self, position: int) -> tuple[int, Any, Any]:
        return position, *self.task.sample(self.part, position, self.order)


def wrapped(value: Any, where: str) -> Any:
    """Return inputs with images as `tv_tensors.Image` (c, h, w) and numbers as tensors."""
    if isinstance(value, Mapping):
        return {name: wrapped(each, where) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return tuple(wrapped(each, where) for each in value)
    if isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3)):
        return tv_tensors.Image(as_image(value, where))
    return torch.as_tensor(value)


def _cut(inputs: Any, side: int) -> Any:
    """Return inputs whose images (c, h, w) have the mean in place of a square."""
    size = next((tuple(tensor.shape[1:]) for _, tensor in tensors_of(inputs) if tensor.ndim == 3), (1, 1))
    row, column = (torch.randint(length, (1,)) for length in size)
    square = square_mask(row, column, side, *size)[0]
    return mapped(inputs, lambda tensor: tensor.masked_fill(square, 0) if tensor.shape[1:] == size else tensor)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without what torchvision knows of it."""
    return tensor.as_subclass(Tensor)


def images_in(inputs: Any) -> list[Tensor]:
    """Return the images among inputs."""
    return [tensor for _, tensor in tensors_of(inputs) if isinstance(tensor, tv_tensors.Image)]


def size_of(inputs: Any) -> tuple[int, int]:
    """Return (height, width) of the first image among inputs; (1, 1) where there is none."""
    return next(((image.shape[-2], image.shape[-1]) for image in images_in(inputs)), (1, 1))


def output_like(output: Any, targets: Tensor, name: str) -> Tensor:
    """Return the one tensor of an output in float32, in the shape of the targets."""
    found = single_tensor(output).float()
    if found.numel() != targets.numel():
        raise DataError(f"{name}: the network returns {tuple(found.shape)} and targets are {tuple(targets.shape)}")
    return found.reshape(targets.shape)


def mean_of(name: str, values: Tensor) -> dict[str, float]:
    """Return the mean of samples' values (n,) and its standard error, under a name."""
    error = {f"{name}_stderr": float(values.std() / len(values) ** 0.5)} if len(values) > 1 else {}
    return {name: float(values.mean()), **error}


def bootstrap(rows: Tensor, judge: Callable[[Tensor], Tensor], rounds: int = 100) -> float:
    """Return the standard error of what is judged of samples' rows (n, ...), by drawing samples anew."""
    draws = torch.randint(len(rows), (rounds, len(rows)), generator=torch.Generator().manual_seed(0))
    found = torch.stack([judge(rows[draw]) for draw in draws.to(rows.device)]).double()
    return float(found[~found.isnan()].std())


def library(part: str = "functional") -> Any:
    """Return a part of torchmetrics."""
    try:
        return importlib.import_module(f"torchmetrics.{part}")
    except ImportError as error:
        raise DataError(f"ready-made tasks need torchmetrics: pip install 'convwright[tasks]' ({error})") from error
