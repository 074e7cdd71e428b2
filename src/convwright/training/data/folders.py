"""Image folders and map-style torch data sets: held in memory if small, else streamed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from convwright.errors import DataError, is_there
from convwright.training.data.images import ArrayImages, Images, StreamImages, as_image, class_number, statistics
from convwright.training.data.sources import Parts, Shape, converted

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
Stats = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel
_SAMPLE = 256  # images that the statistics of a streamed set are taken from


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder, decoded to one shape. Reading is `files(position)`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    shape: Shape
    resize: bool

    @property
    def mode(self) -> str:
        """Grey or colour, as PIL names it."""
        return "L" if self.shape[0] == 1 else "RGB"

    def whole(self, position: int) -> Tensor:
        """Return one image as (c, h, w) uint8 in the size of its file.

        Raises:
            DataError: Names the file that cannot be decoded.
        """
        path = self.paths[position]
        return as_image(_decode(path, self.mode), path)

    def __call__(self, position: int) -> Tensor:
        """Return one image as (c, h, w) uint8.

        Raises:
            DataError: Names the file that cannot be decoded or has another size.
        """
        path = self.paths[position]
        channels, height, width = self.shape
        image = _decode(path, self.mode)
        if image.size != (width, height):
            if not self.resize:
                raise DataError(
                    f"{path}: {image.size[0]}x{image.size[1]} pixels where the first image has "
                    f"{width}x{height}; give the size, for example "
                    f"--input {channels}x{height}x{width}"
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        return as_image(image, path)


def _decode(path: str, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image; repair or remove the file") from error


def folder_parts(root: Path, shape: Shape | None, limit: int) -> Parts:
    """Read `root/class/*.png`, or `root/train/class/*` with `root/val/...` and `root/test/...`.

    Args:
        root: The folder; classes are numbered in the order of their names.
        shape: (c, h, w) to decode to; None: as the first image is, and all must be alike.
        limit: Bytes of decoded images up to which a part is held in memory; more is streamed.

    Raises:
        DataError: Missing or empty folder, unreadable or unlike images, unknown classes.
    """
    if not is_there(root, Path.is_dir):
        raise DataError(f"{root}: no such folder; check the path after folder:")
    nested = (root / "train").is_dir()
    train_root = root / "train" if nested else root
    names = tuple(sorted(p.name for p in train_root.iterdir() if p.is_dir()))
    files = _files(train_root, names, shape)
    train = _in_memory_or_stream(files, limit, None)

    def part(folder: str) -> Images:
        return _in_memory_or_stream(_files(root / folder, names, files.shape), limit, (train.mean, train.std))

    val = part("val") if nested and (root / "val").is_dir() else None
    test = (lambda: part("test")) if nested and (root / "test").is_dir() else None
    return Parts(train, val, test, names)


def _files(root: Path, names: tuple[str, ...], shape: Shape | None) -> ImageFiles:
    unknown = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in names)
    if unknown:
        raise DataError(f"{root / unknown[0]}: this class has no training images; add or remove it")
    found: list[tuple[str, int]] = []
    for label, name in enumerate(names):
        paths = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths and shape is None:
            raise DataError(f"{root / name}: no images; add some or remove the folder")
        found += [(str(path), label) for path in paths]
    if not found:
        raise DataError(f"{root}: no images; the layout is FOLDER/class/image.png")
    files, labels = zip(*found, strict=True)
    return ImageFiles(files, labels, shape or _shape_of(files[0]), resize=shape is not None)


def _shape_of(path: str) -> Shape:
    try:
        with Image.open(path) as image:
            return (1 if image.mode in ("1", "L") else 3), image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image; repair or remove the file") from error


@dataclass(frozen=True, eq=False)
class DatasetReader:
    """The images of a map-style torch data set, named `source` in errors. Reading is `reader(position)`."""

    dataset: Any
    source: str
    shape: Shape | None

    def sample(self, position: int) -> tuple[Tensor, int]:
        """Return ((c, h, w) tensor, label).

        Raises:
            DataError: The item is not (image, whole number).
        """
        source = f"{self.source}[{position}]"
        try:
            value, label = self.dataset[position]
        except (TypeError, ValueError) as error:
            raise DataError(f"{source} is not a pair (image, whole number): {error}") from error
        number = class_number(label, source)
        image = as_image(value, source)
        return (converted(image[None], self.shape)[0] if self.shape else image), number

    def __call__(self, position: int) -> Tensor:
        """Return the image at `position`."""
        return self.sample(position)[0]


def dataset_part(dataset: Any, source: str, shape: Shape | None, limit: int, stats: Stats | None) -> Images:
    """Hold a map-style data set in memory if it fits into `limit` bytes, else stream it.

    Raises:
        DataError: Empty, without length, or items that are not pairs of equal shapes.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"{source}: iterable data sets have no positions; give a map-style Dataset")
    count = len(dataset)
    if count == 0:
        raise DataError(f"{source}: the data set is empty; give at least one image")
    reader = DatasetReader(dataset, source, shape)
    first = reader(0)
    channels, height, width = first.shape
    size = (channels, height, width)
    if count * first.numel() * first.element_size() > limit:
        targets = getattr(dataset, "targets", None)
        if targets is None:
            labels = [reader.sample(i)[1] for i in range(count)]
        else:
            labels = [class_number(label, f"{source}[{i}]") for i, label in enumerate(targets)]
        return _stream(reader, labels, size, stats)
    images, numbers = zip(*(reader.sample(i) for i in range(count)), strict=True)
    return _array(images, numbers, source, stats)


def _array(images: Sequence[Tensor], labels: Sequence[int], name: str, stats: Stats | None) -> ArrayImages:
    for position, image in enumerate(images):
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise DataError(
                f"{name}[{position}]: {tuple(image.shape)} {image.dtype} where the first image is "
                f"{tuple(images[0].shape)} {images[0].dtype}; make all images alike"
            )
    stacked = torch.stack(list(images)).contiguous(memory_format=torch.channels_last)
    return ArrayImages(stacked, torch.tensor(labels), *(stats or statistics(stacked)))


def _stream(read: Callable[[int], Tensor], labels: Sequence[int], shape: Shape, stats: Stats | None) -> StreamImages:
    count = len(labels)
    if stats is None:
        positions = range(0, count, max(count // _SAMPLE, 1))
        stats = statistics(torch.stack([read(position) for position in positions]))
    whole = read.whole if isinstance(read, ImageFiles) else None
    return StreamImages(read, torch.arange(count), torch.tensor(labels), shape, *stats, whole)


def _in_memory_or_stream(files: ImageFiles, limit: int, stats: Stats | None) -> Images:
    count = len(files.paths)
    if count * math.prod(files.shape) > limit:
        return _stream(files, files.labels, files.shape, stats)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # decoding releases the GIL
        images = list(pool.map(files, range(count)))
    return _array(images, files.labels, "folder", stats)
