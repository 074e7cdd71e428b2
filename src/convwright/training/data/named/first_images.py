"""The first images of well-known data sets, for comparisons that a processor can finish; the test part stays whole."""

from __future__ import annotations

from dataclasses import replace

import torch

from convwright.training.data.named.cifar10 import cifar10
from convwright.training.data.named.fashion_mnist import fashion_mnist
from convwright.training.data.named.registry import Request, data_set
from convwright.training.data.sources import Parts

COUNT = 10_000


@data_set("cifar10-10k")
def cifar10_10k(request: Request) -> Parts:
    """The first 10,000 training images of CIFAR-10 and all 10,000 test images."""
    return _first(cifar10(request))


@data_set("fashion-mnist-10k")
def fashion_mnist_10k(request: Request) -> Parts:
    """The first 10,000 training images of Fashion-MNIST and all 10,000 test images."""
    return _first(fashion_mnist(request))


def _first(parts: Parts) -> Parts:
    # Pixels are normalised as in the whole data set: so a network trained on one can be judged on the other.
    return replace(parts, train=parts.train.subset(torch.arange(min(COUNT, len(parts.train)))))
