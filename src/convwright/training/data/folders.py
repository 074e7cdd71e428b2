"""Image folders and map-style torch data sets: held in memory if small, else streamed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from convwright.errors import DataError, DataWarning, is_there
from convwright.training.data.images import (
    ArrayImages,
    Images,
    Stats,
    StreamImages,
    as_image,
    class_number,
    eight_bits,
    statistics,
)
from convwright.training.data.loader import seeded
from convwright.training.data.sources import Parts, Shape, converted

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_TRAIN, _VAL, _TEST = PARTS = (("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing"))
_SAMPLE = 256  # images that the statistics of a streamed set are taken from
_TRIED = 8  # items that are read twice, to see whether they stay the same
_GIVE = "for example --input {}x224x224"


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Resize(BaseModel):
    """How photographs of a folder become images of one size: resized, and a part cut out of the middle.

    Attributes:
        crop_pct: Share of the shorter side that is shown, 1 for all of it. None: as the pretrained weights of the
            network were judged, where there are such weights; else 1.
        interpolation: Of the resizing. None: likewise; else bicubic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Interpolation | None = None

    def __str__(self) -> str:
        return f"{self.crop_pct or 1:.4g} of the shorter side is shown, {self.interpolation or 'bicubic'}"

    def of(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Return an image at another size; what is beyond the sides' ratio is cut off alike on both ends."""
        method = Image.Resampling[(self.interpolation or "bicubic").upper()]
        return ImageOps.fit(image, (width, height), method, bleed=(1 - (self.crop_pct or 1)) / 2)


class UnlikeImagesError(DataError):
    """Images of several sizes, where no size was given.

    Attributes:
        what: Which file differs.
        channels: Of the images.
    """

    def __init__(self, what: str, channels: int) -> None:
        super().__init__(f"{what}; give one size for all, {_GIVE.format(channels)}")
        self.what, self.channels = what, channels


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder, decoded to one shape. Reading is `files(position)`.

    Attributes:
        paths: Of the files.
        labels: Of the images.
        shape: (c, h, w).
        resize: Whether images of another size or in colour are converted to it, or refused.
        limit: Bytes of decoded images up to which they are held in memory.
        framing: How images are converted.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    shape: Shape
    resize: bool
    limit: int
    framing: Resize = Resize()  # noqa: RUF009 - frozen

    def subset(self, indices: Tensor) -> ImageFiles:
        """Return the images at `indices` (m,)."""
        chosen = indices.tolist()
        return replace(self, paths=tuple(self.paths[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))

    def resized(self, size: tuple[int, int]) -> ImageFiles:
        """Return the same images at another (height, width)."""
        return replace(self, shape=(self.shape[0], *size), resize=True)

    def images(self, stats: Stats | None) -> Images:
        """Read the images, or have them streamed if they are more than `limit`.

        Raises:
            DataError: As for reading one.
        """
        count = len(self.paths)
        if count * math.prod(self.shape) > self.limit:
            return _stream(self, self.labels, self.shape, stats)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # decoding releases the GIL
            images = list(pool.map(self, range(count)))
        return replace(_array(images, self.labels, "folder", stats), files=self)

    def whole(self, position: int) -> Tensor:
        """Return one image as (c, h, w) uint8 in the size of its file.

        Raises:
            DataError: Names the file that cannot be decoded.
        """
        path = self.paths[position]
        return as_image(self._decoded(path), path)

    def _decoded(self, path: str) -> Image.Image:
        image = decode(path)
        if not self.resize and self.shape[0] == 1 and image.mode == "RGB":
            raise DataError(f"{path}: in colour where the first image is grey; give the colours, {_GIVE.format(3)}")
        return image.convert("L" if self.shape[0] == 1 else "RGB")

    def __call__(self, position: int) -> Tensor:
        """Return one image as (c, h, w) uint8.

        Raises:
            DataError: Names the file that cannot be decoded.
            UnlikeImagesError: Names the file that has another size.
        """
        path = self.paths[position]
        channels, height, width = self.shape
        image = self._decoded(path)
        if image.size != (width, height) and not self.resize:
            raise UnlikeImagesError(
                f"{path}: {image.size[0]}x{image.size[1]} pixels where the first image has {width}x{height}", channels
            )
        whole = image.size == (width, height) and self.framing.crop_pct in (None, 1)
        return as_image(image if whole else self.framing.of(image, width, height), path)


def decode(path: str) -> Image.Image:
    """Return an image upright, as 8 bits of grey or colour."""
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return eight_bits(image, path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image; repair or remove the file") from error


def folder_parts(root: Path, shape: Shape | None, limit: int, framing: Resize | None = None) -> Parts:
    """Read `root/class/*.png`, or `root/train/class/*` with `root/val/...` and `root/test/...`.

    Args:
        root: The folder; classes are numbered in the order of their names.
        shape: (c, h, w) to decode to; None: as the first image is, and all must be alike.
        limit: Bytes of decoded images up to which a part is held in memory; more is streamed.
        framing: How images are converted to `shape`; None: whole. Images that are alike already stay as they are.

    Raises:
        DataError: Missing or empty folder, two folders for one part, unreadable or unlike images, unknown classes.
    """
    if not is_there(root, Path.is_dir):
        raise DataError(f"{root}: no such folder; check the path after folder:")
    train_root, val_root, test_root = (part_folder(root, names) for names in PARTS)
    if train_root is None or not _folders(train_root):  # the folders are the classes, one of which may be called train
        train_root, val_root, test_root = root, None, None
    elif unused := [path.name for path in _folders(root) if path not in (train_root, val_root, test_root)]:
        parts = ", ".join("/".join(names) for names in PARTS)
        warnings.warn(f"{root}: not used: {', '.join(unused)} (parts are called {parts})", DataWarning, stacklevel=2)
    names = tuple(p.name for p in _folders(train_root))
    if names and set(map(str.lower, names)) <= {name for part in PARTS for name in part}:
        raise DataError(f"{root}: has {', '.join(names)} and no training images; put those into train/class/")
    paths, labels = _listed(train_root, names, every=True)
    framing = framing if framing is not None and shape is not None else Resize()
    files = ImageFiles(paths, labels, shape or _shape_of(paths[0]), shape is not None, limit, framing)
    train = files.images(None)

    def part(folder: Path) -> Images:
        paths, labels = _listed(folder, names)
        return replace(files, paths=paths, labels=labels).images((train.mean, train.std))

    val = part(val_root) if val_root is not None else None
    return Parts(train, val, (lambda: part(test_root)) if test_root is not None else None, names)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def part_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the one folder in a folder that has one of these names."""
    found = [path for path in _folders(root) if path.name.lower() in names]
    if len(found) > 1 and all(map(_folders, found)):
        raise DataError(f"{root}: has {found[0].name} and {found[1].name}, which mean the same; keep one of them")
    return found[0] if found else None


def _listed(root: Path, names: tuple[str, ...], every: bool = False) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the files of a part and their labels; with `every`, each class must have some."""
    unknown = [p.name for p in _folders(root) if p.name not in names]
    if unknown:
        raise DataError(f"{root / unknown[0]}: this class has no training images; add or remove it")
    found: list[tuple[str, int]] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files and every:
            raise DataError(f"{root / name}: no images; add some or remove the folder")
        found += [(str(file), label) for file in files]
    if not found:
        raise DataError(f"{root}: no images; the layout is FOLDER/class/image.png")
    paths, labels = zip(*found, strict=True)
    return paths, labels


def _shape_of(path: str) -> Shape:
    image = decode(path)
    return (1 if image.mode == "L" else 3), image.height, image.width


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


def dataset_part(
    dataset: Any, source: str, shape: Shape | None, limit: int, stats: Stats | None, fresh: bool = False
) -> Images:
    """Hold a map-style data set in memory if it fits into `limit` bytes, else stream it.

    Args:
        dataset: Items are pairs (image, label).
        source: Named in errors.
        shape: Images are resized to it.
        limit: Bytes.
        stats: Mean and standard deviation; None: of these images.
        fresh: Whether items that differ from one read to the next, by random transforms, are read anew each time.

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
    if count * first.numel() * first.element_size() > limit or (fresh and _differs(reader, count)):
        targets = getattr(dataset, "targets", None)
        if targets is None:
            labels = [reader.sample(i)[1] for i in range(count)]
        else:
            labels = [class_number(label, f"{source}[{i}]") for i, label in enumerate(targets)]
        return _stream(reader, labels, size, stats)
    images, numbers = zip(*(reader.sample(i) for i in range(count)), strict=True)
    return _array(images, numbers, source, stats)


def _differs(reader: DatasetReader, count: int) -> bool:
    def read(seed: int) -> list[Tensor]:
        with seeded(seed):
            return [reader(position) for position in range(min(count, _TRIED))]

    pairs = zip(read(1), read(2), strict=True)
    return any(one.shape != two.shape or not torch.equal(one, two) for one, two in pairs)


def frozen(images: StreamImages) -> ArrayImages:
    """Return images as they are read now, to be the same whenever a network is judged on them."""
    with seeded(0):
        read = [images.read(int(position)) for position in images.indices]
    return _array(read, images.labels.tolist(), "images", (images.mean, images.std))


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
