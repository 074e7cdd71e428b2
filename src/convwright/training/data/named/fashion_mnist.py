"""Fashion-MNIST."""

from __future__ import annotations

from convwright.training.data.named.local_copy import local_or_downloaded
from convwright.training.data.named.registry import Request, data_set
from convwright.training.data.sources import Parts

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@data_set("fashion-mnist")
def fashion_mnist(request: Request) -> Parts:
    """60,000 training and 10,000 test images of clothes, 1x28x28, ten classes (Xiao et al. 2017)."""
    files = ("fashion-mnist.npz", "fashion_mnist.npz")
    return local_or_downloaded("fashion-mnist", files, "FashionMNIST", CLASSES, request)
