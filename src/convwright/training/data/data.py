"""Labelled images for training: one call, `load_data`, for every kind of source."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from convwright.errors import DataError
from convwright.training.data.folders import DatasetReader, ImageFiles, Resize, dataset_part, folder_parts, frozen
from convwright.training.data.images import (
    ArrayImages,
    Images,
    StreamImages,
    check_classes,
    check_labels,
    count_classes,
    stratified_split,
)
from convwright.training.data.named import Request, data_set_named
from convwright.training.data.sources import Parts, Shape, npz_parts
from convwright.training.settings import single_tensor
from convwright.training.tasks.base import BaseTask, Batch, Loss
from convwright.training.tasks.losses import count_right, distillation_loss

if TYPE_CHECKING:
    from convwright.training.recipe.recipe import Recipe

MEMORY_LIMIT = 512 * 2**20  # bytes of decoded images per part; larger folders are streamed


@dataclass(frozen=True, eq=False)
class ImageData(BaseTask):
    """Labelled images in three parts: the task of classification.

    Attributes:
        name: What the user called it.
        train: The training part, without the validation images.
        val: The validation part: what searches and epochs are judged by. None if not wanted.
        class_names: One name per class.
    """

    kind: ClassVar[str] = "classification"

    name: str
    train: Images
    val: Images | None
    class_names: tuple[str, ...]
    read_test: Callable[[], Images] | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of one image."""
        return self.train.shape

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel in units of 0..1; the source's is over training and validation images."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, likewise."""
        return self.train.std

    @property
    def resize(self) -> Resize:
        """How photographs became images of one size."""
        files = self.train.files if isinstance(self.train, ArrayImages) else self.train.read
        return files.framing if isinstance(files, ImageFiles) else Resize()

    @property
    def guess(self) -> float:
        """Loss of a network that only guesses."""
        return math.log(self.num_classes)

    def loss(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy, of class numbers (n,) or shares (n, classes)."""
        scores = single_tensor(model(batch[0])).float()
        return F.cross_entropy(scores, batch[1], label_smoothing=label_smoothing)

    @override
    def training_loss(self, recipe: Recipe) -> Loss:
        return partial(self.loss, label_smoothing=recipe.label_smoothing)

    @override
    def right(self, output: Any, targets: Any) -> Tensor:
        return count_right(single_tensor(output), targets)

    @override
    def outputs(self, output: Any) -> tuple[Tensor]:
        return (single_tensor(output),)

    @override
    def distance(self, own: Sequence[Tensor], taught: Sequence[Tensor], temperature: float) -> Tensor:
        return distillation_loss(own[0], taught[0], temperature)

    @override
    def example(self, device: torch.device | None = None) -> Tensor:
        return torch.zeros(1, *self.shape, device=device)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageData:
        """Return the same images with another mean and standard deviation per channel."""
        same = (mean, std) == (self.mean, self.std)
        return self if same else self.mapped(lambda images: replace(images, mean=mean, std=std))

    def mapped(self, change: Callable[[Images], Images]) -> ImageData:
        """Return the data with each part changed; the test part when it is asked for."""
        val = change(self.val) if self.val is not None else None
        test = (lambda: change(self.test)) if self.has_test else None
        return replace(self, train=change(self.train), val=val, read_test=test)

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        return self.read_test is not None

    @cached_property
    def test(self) -> Images:
        """The test part; read when first asked for.

        Raises:
            DataError: There is none, or it does not fit the training part.
        """
        if self.read_test is None:
            raise DataError(f"{self.name}: no test part; add x_test and y_test, or a folder test/")
        part = self.read_test()
        _check_part(part, self.shape, self.num_classes, f"{self.name}: test")
        return part


def load_data(
    spec: Any,
    data_dir: str | Path | None = None,
    *,
    input_shape: Shape | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    num_classes: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    resize: Resize | None = None,
) -> ImageData:
    """Load a data set and split off its validation part.

    Args:
        spec: `fashion-mini` (embedded), `mnist`, `fashion-mnist`, `cifar10` or another name of
            `training.data.named`, `npz:PATH`, `folder:PATH`, or from Python a map-style data set of (image,
            label), or (train, test), or (train, val, test) of them. A training part whose items differ when they are
            read again, by random transforms, is read in each epoch; others that fit into memory are read once.
        data_dir: Where `mnist.npz`, `fashion-mnist.npz`, `cifar10.npz` lie; else
            `$CONVWRIGHT_DATA`; else torchvision downloads.
        input_shape: (c, h, w) that the network wants: images are resized, grey is repeated.
        val_fraction: Share of the training images, class by class, that becomes the validation
            part; not used where the source has one.
        split_seed: The split depends on it. Leave it, so that different training seeds compare on the same images.
        num_classes: Number of classes; None: what the source says, else the largest label plus 1, and then no class
            may be missing in between.
        memory_limit: Bytes of decoded images per part above which it is streamed.
        resize: How photographs of a folder are converted to `input_shape`; None: whole.

    Raises:
        DataError: Unknown name, missing, empty or damaged files, labels that are not whole numbers, lie outside the
            classes, leave classes out or are all alike. One line, with the file and the remedy.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction} is not in 0 <= value < 1; use 0.1")
    folder = Path(data_dir) if data_dir is not None else None
    name, parts = _parts(spec, folder, input_shape, memory_limit, resize)
    train, val, names = parts.train, parts.val, parts.class_names or ()
    check_classes(train.labels, f"{name}: train")
    count = num_classes if num_classes is not None else len(names) or count_classes(train.labels, f"{name}: train")
    check_labels(train.labels, count, f"{name}: train")
    names = names if len(names) == count else tuple(map(str, range(count)))
    if val is not None:
        _check_part(val, train.shape, count, f"{name}: val")
    elif val_fraction > 0:
        kept, held = stratified_split(train.labels, val_fraction, split_seed)
        train, val = train.subset(kept), (train.subset(held) if len(held) else None)
        if isinstance(val, StreamImages) and isinstance(val.read, DatasetReader) and memory_limit > 0:
            size = len(val) * math.prod(val.shape)
            val = frozen(val) if size <= memory_limit else val  # random transforms are for the training
    return ImageData(name, train, val, names, parts.test)


def check_fits(data: ImageData, example_input_shape: tuple[int, ...], num_outputs: int) -> None:
    """Refuse data that a network cannot take.

    Args:
        data: The data.
        example_input_shape: (c, h, w) or (batch, c, h, w) that the network was read with.
        num_outputs: Its number of outputs.

    Raises:
        DataError: Another number of channels, another size, or fewer outputs than classes.
    """
    wanted, shape = tuple(example_input_shape[-3:]), data.shape
    asked, given = ("x".join(map(str, s)) for s in (wanted, shape))
    if wanted[0] != shape[0]:
        raise DataError(
            f"{data.name}: images have {shape[0]} channels and the network wants {wanted[0]}; "
            f"load the data with --input {asked}, or change the network's first layer"
        )
    if wanted != shape:
        raise DataError(
            f"{data.name}: images are {given} and the network was read with {asked}; "
            f"read it with --input {given}, or load the data at {asked}"
        )
    if num_outputs < data.num_classes:
        raise DataError(
            f"{data.name}: {data.num_classes} classes and the network has {num_outputs} outputs; "
            f"build the network with {data.num_classes} classes"
        )


def _parts(
    spec: Any, data_dir: Path | None, shape: Shape | None, limit: int, resize: Resize | None
) -> tuple[str, Parts]:
    if not isinstance(spec, (str, Path)):
        return _dataset_parts(spec, shape, limit)
    text = str(spec)
    kind, _, path = text.partition(":")
    if kind == "npz" and path:
        return text, npz_parts(Path(os.path.expanduser(path)), path, shape)  # noqa: PTH111 - "~nobody" is no error
    if kind == "folder" and path:
        return text, folder_parts(Path(os.path.expanduser(path)), shape, limit, resize)  # noqa: PTH111
    return text, data_set_named(text).read(Request(data_dir, shape, limit))


def _dataset_parts(spec: Any, shape: Shape | None, limit: int) -> tuple[str, Parts]:
    _check_samples(spec)
    sets = tuple(spec) if isinstance(spec, (tuple, list)) else (spec,)
    if not 1 <= len(sets) <= 3:
        raise DataError(f"{len(sets)} data sets; give one, (train, test) or (train, val, test)")
    name = type(sets[0]).__name__
    train = dataset_part(sets[0], f"{name}: train", shape, limit, None, fresh=limit > 0)
    stats = (train.mean, train.std)
    val = dataset_part(sets[1], f"{name}: val", shape, limit, stats) if len(sets) == 3 else None
    test = (lambda: dataset_part(sets[-1], f"{name}: test", shape, limit, stats)) if len(sets) > 1 else None
    names = getattr(sets[0], "classes", None)
    names = tuple(str(name) for name in names) if names is not None else None
    return name, Parts(train, val, test, names)


def _check_samples(spec: Any) -> None:
    """Refuse what was meant as samples or as images and labels, with the way to write it."""
    if spec is None:
        raise DataError("data=None; give a name such as fashion-mini, npz:PATH, folder:PATH or a Dataset")
    first = next(iter(spec), None) if isinstance(spec, (tuple, list)) else spec
    name, pair = type(first).__name__, "torch.utils.data.TensorDataset(images, labels)"
    if isinstance(first, (Tensor, np.ndarray)):
        raise DataError(f"{name} where a data set is wanted; give {pair}, with images (n, c, h, w)")
    if isinstance(first, (tuple, list)):
        count = len(spec)
        raise DataError(
            f"a {type(spec).__name__} of {count} sample{'s' * (count != 1)} where data sets are wanted; give {pair} or "
            "your own Dataset, or (train, test) of them"
        )


def _check_part(part: Images, shape: Shape, num_classes: int, source: str) -> None:
    check_labels(part.labels, num_classes, source)
    if part.shape != shape:
        given, wanted = ("x".join(map(str, s)) for s in (part.shape, shape))
        raise DataError(
            f"{source}: images are {given} and those of the training part {wanted}; "
            f"make them alike, or load all at one size with --input {wanted}"
        )
