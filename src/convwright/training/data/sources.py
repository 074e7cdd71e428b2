"""What a source of data offers, and npz files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from convwright.errors import DataError, first_line
from convwright.training.data.images import ArrayImages, Images, statistics

Shape = tuple[int, int, int]
_UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, MemoryError, OverflowError, SyntaxError, RuntimeError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source offers; `val` and `test` may be missing. The test part is read when called."""

    train: Images
    val: Images | None
    test: Callable[[], Images] | None
    class_names: tuple[str, ...] | None


def npz_parts(source: Path, name: str, shape: Shape | None) -> Parts:
    """Read `x_train y_train` and, if there, `class_names` now, and `x_test y_test` when asked for.

    Args:
        source: The file; images uint8 of shape (n, h, w), (n, h, w, c) or (n, c, h, w).
        name: Named in errors.
        shape: (c, h, w) to convert images to, or None.

    Raises:
        DataError: Missing file, not an npz, missing keys, wrong type or shape.
    """
    train = _npz_images(source, name, "train", shape)
    with opened_npz(source, name) as arrays:
        classes = tuple(map(str, arrays["class_names"].ravel())) if "class_names" in arrays.files else None
        if not {"x_test", "y_test"} <= set(arrays.files):
            return Parts(train, None, None, classes)

    return array_parts(train, lambda: _npz_images(source, name, "test", shape), classes)


def array_parts(
    train: ArrayImages, test: Callable[[], ArrayImages], class_names: tuple[str, ...] | None = None
) -> Parts:
    """Return parts whose test images are read when asked for, and normalised as the training images."""
    return Parts(train, None, lambda: replace(test(), mean=train.mean, std=train.std), class_names)


@contextmanager
def opened_npz(source: Path, name: str) -> Iterator[NpzFile]:
    """Open an npz without pickles; whatever is wrong with it becomes one line."""
    try:
        # Opened here, because numpy leaves the file open when it turns out not to be a zip.
        with source.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise DataError(f"{name}: a single array; give an .npz with x_train and y_train")
            with arrays:
                _check_sizes(arrays, name)
                yield arrays
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path after npz:") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{name}: cannot be read ({first_line(error)}); write it with numpy.savez and plain number arrays"
        ) from error


def _check_sizes(arrays: NpzFile, name: str) -> None:
    """Refuse arrays that are said to be larger than what the file holds of them: memory would be taken first."""
    packed = arrays.zip
    assert packed is not None
    for entry in packed.infolist():
        with packed.open(entry) as file:
            first = np.lib.format.read_magic(file) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, kind = header(file)
        if not kind.hasobject and math.prod(shape) * kind.itemsize > entry.file_size:
            raise DataError(f"{name}: {entry.filename} is damaged: it says to be larger than it is")


def _npz_images(source: Path, name: str, part: str, shape: Shape | None) -> ArrayImages:
    keys = f"x_{part}", f"y_{part}"
    with opened_npz(source, name) as arrays:
        missing = [key for key in keys if key not in arrays.files]
        if missing:
            found = ", ".join(arrays.files) or "nothing"
            raise DataError(
                f"{name}: no {' and '.join(missing)} (found {found}); save with "
                "numpy.savez(file, x_train=..., y_train=..., x_test=..., y_test=...)"
            )
        pixels, numbers = (arrays[key] for key in keys)
    return array_images(pixels, numbers, shape, *(f"{name}: {key}" for key in keys))


def array_images(
    pixels: npt.NDArray[Any], numbers: npt.NDArray[Any], shape: Shape | None, pixel_source: str, label_source: str
) -> ArrayImages:
    """Return labelled images from their arrays, converted to `shape`.

    Raises:
        DataError: Wrong type or shape; names the source.
    """
    images, count = _image_tensor(pixels, pixel_source), len(pixels)
    if numbers.dtype.kind not in "iu":
        raise DataError(f"{label_source} has type {numbers.dtype}; give integer class numbers from 0")
    if numbers.shape not in ((count,), (count, 1)):
        raise DataError(f"{label_source} has shape {numbers.shape}; give one label per image: ({count},)")
    labels = torch.from_numpy(numbers.reshape(-1).astype(np.int64))
    images = (converted(images, shape) if shape else images).contiguous(memory_format=torch.channels_last)
    return ArrayImages(images, labels, *statistics(images))


def _image_tensor(array: npt.NDArray[Any], source: str) -> Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{source} has type {array.dtype}; give uint8 values 0..255")
    tensor = torch.from_numpy(array)
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4):
        tensor = tensor.permute(0, 3, 1, 2)
    elif tensor.ndim != 4 or tensor.shape[1] not in (1, 3, 4):
        raise DataError(
            f"{source} has shape {array.shape}; give (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 channels"
        )
    if not tensor.numel():
        raise DataError(f"{source} is empty (shape {array.shape}); give at least one image")
    return tensor


def converted(images: Tensor, shape: Shape) -> Tensor:
    """Return (n, c, h, w) images with the channels and size of `shape` (grey is repeated).

    Raises:
        DataError: Channels that cannot be converted: only grey becomes colour.
    """
    from torchvision.transforms.v2 import functional as tv

    channels, height, width = shape
    if images.shape[1] == 1 and channels > 1:
        images = images.expand(-1, channels, -1, -1)
    if images.shape[1] != channels:
        raise DataError(
            f"the images have {images.shape[1]} channels and the network wants {channels}; "
            "only grey images can be turned into colour, change the network's first layer instead"
        )
    if images.shape[2:] == (height, width):
        return images
    pieces = [tv.resize(piece, [height, width], antialias=True) for piece in torch.split(images, 1024)]
    return torch.cat(pieces)
