"""The embedded part of Fashion-MNIST."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convwright.training.data.named.fashion_mnist import CLASSES
from convwright.training.data.named.registry import Request, data_set
from convwright.training.data.sources import Parts, npz_parts

_FILE = Path(__file__).parents[2] / "assets" / "fashion_mini.npz"


@data_set("fashion-mini")
def fashion_mini(request: Request) -> Parts:
    """10,000 training and 2,000 test images of Fashion-MNIST, part of the package."""
    return replace(npz_parts(_FILE, "fashion-mini", request.shape), class_names=CLASSES)
