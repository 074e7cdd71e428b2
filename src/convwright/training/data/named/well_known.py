"""Well-known data sets: the user's own .npz of that name, else torchvision's download; and parts of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from convwright.errors import DataError, first_line
from convwright.training.data.images import ArrayImages
from convwright.training.data.named import Request, data_set
from convwright.training.data.sources import Parts, Shape, array_images, array_parts, npz_parts

_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_MINI = Path(__file__).parents[2] / "assets" / "fashion_mini.npz"
FIRST = 10_000  # images of comparisons that a processor can finish; the test part stays whole


@data_set("cifar10")
def cifar10(request: Request) -> Parts:
    """50,000 training and 10,000 test photographs, 3x32x32, ten classes (Krizhevsky 2009)."""
    return _local_or_downloaded("cifar10", ("cifar10.npz",), "CIFAR10", _CIFAR, request)


@data_set("fashion-mini")
def fashion_mini(request: Request) -> Parts:
    """10,000 training and 2,000 test images of Fashion-MNIST, part of the package."""
    return replace(npz_parts(_MINI, "fashion-mini", request.shape), class_names=_CLOTHES)


@data_set("fashion-mnist")
def fashion_mnist(request: Request) -> Parts:
    """60,000 training and 10,000 test images of clothes, 1x28x28, ten classes (Xiao et al. 2017)."""
    files = ("fashion-mnist.npz", "fashion_mnist.npz")
    return _local_or_downloaded("fashion-mnist", files, "FashionMNIST", _CLOTHES, request)


@data_set("cifar10-10k")
def cifar10_10k(request: Request) -> Parts:
    """The first 10,000 training images of CIFAR-10 and all 10,000 test images."""
    return _first(cifar10(request))


@data_set("fashion-mnist-10k")
def fashion_mnist_10k(request: Request) -> Parts:
    """The first 10,000 training images of Fashion-MNIST and all 10,000 test images."""
    return _first(fashion_mnist(request))


@data_set("mnist")
def mnist(request: Request) -> Parts:
    """60,000 training and 10,000 test images of digits, 1x28x28 (LeCun et al. 1998)."""
    return _local_or_downloaded("mnist", ("mnist.npz",), "MNIST", tuple("0123456789"), request)


def _first(parts: Parts) -> Parts:
    # Pixels are normalised as in the whole data set: so a network trained on one can be judged on the other.
    return replace(parts, train=parts.train.subset(torch.arange(min(FIRST, len(parts.train)))))


def _local_or_downloaded(
    name: str, files: Sequence[str], torchvision_name: str, class_names: tuple[str, ...], request: Request
) -> Parts:
    """Read one of `files` from ``request.data_dir`` or ``$CONVWRIGHT_DATA``, else download torchvision's class."""
    environment = os.environ.get("CONVWRIGHT_DATA")
    folders = [request.data_dir, Path(environment) if environment else None]
    candidates = (folder / file for folder in folders if folder for file in files)
    found = next((file for file in candidates if file.is_file()), None)
    if found is not None:
        parts = npz_parts(found, str(found), request.shape)
    else:
        read = partial(_torchvision_images, name, files[0], torchvision_name, request.shape)
        parts = array_parts(read(train=True), lambda: read(train=False))
    return replace(parts, class_names=class_names)


def _torchvision_images(name: str, file: str, kind: str, shape: Shape | None, *, train: bool) -> ArrayImages:
    from torchvision import datasets

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convwright"
    try:
        # torchvision checks the files' checksums before it reads them.
        dataset = getattr(datasets, kind)(str(cache), train=train, download=True)
    except Exception as error:  # network, disk and checksum errors come in many types
        raise DataError(
            f"{name}: not found locally and the download failed ({first_line(error)}); put "
            f"{file} with x_train, y_train, x_test, y_test into a folder and name it by "
            "--data-dir or $CONVWRIGHT_DATA"
        ) from error
    return array_images(np.asarray(dataset.data), np.asarray(dataset.targets), shape, name, name)
