"""Well-known data sets: the user's own .npz of that name, else torchvision's download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from convwright.errors import DataError
from convwright.training.data.images import ArrayImages
from convwright.training.data.named.registry import Request
from convwright.training.data.sources import Parts, Shape, array_images, array_parts, npz_parts


def local_or_downloaded(
    name: str, files: Sequence[str], torchvision_name: str, class_names: tuple[str, ...], request: Request
) -> Parts:
    """Read one of `files` from ``request.data_dir`` or ``$CONVWRIGHT_DATA``, else download by torchvision.

    Args:
        name: Named in errors.
        files: Names of .npz files, the first one found is read.
        torchvision_name: Class in torchvision.datasets with ``data`` and ``targets``.
        class_names: One name per class.
        request: What was asked for.

    Raises:
        DataError: A bad file; or no file and the download failed.
    """
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name}: not found locally and the download failed ({reason}); put "
            f"{file} with x_train, y_train, x_test, y_test into a folder and name it by "
            "--data-dir or $CONVWRIGHT_DATA"
        ) from error
    return array_images(np.asarray(dataset.data), np.asarray(dataset.targets), shape, name, name)
