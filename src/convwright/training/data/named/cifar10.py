"""CIFAR-10."""

from __future__ import annotations

from convwright.training.data.named.local_copy import local_or_downloaded
from convwright.training.data.named.registry import Request, data_set
from convwright.training.data.sources import Parts

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@data_set("cifar10")
def cifar10(request: Request) -> Parts:
    """50,000 training and 10,000 test photographs, 3x32x32, ten classes (Krizhevsky 2009)."""
    return local_or_downloaded("cifar10", ("cifar10.npz",), "CIFAR10", CLASSES, request)
