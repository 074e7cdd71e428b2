import os

import numpy as np
import pytest
import torch
from torch import nn

from convwright.training import ArrayImages, ImageData, Recipe


@pytest.fixture(autouse=True)
def _no_local_data(monkeypatch, tmp_path):
    """No test may find data sets of the machine, or download any."""
    monkeypatch.delenv("CONVWRIGHT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))


def pictures(count, shape=(3, 8, 8), classes=3, seed=0):
    """Noise whose brightness tells the class: learnable in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 100, (count, *shape), generator=generator)
    images = (noise + labels.view(-1, 1, 1, 1) * 70).to(torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    return ArrayImages(images, labels, (0.4,) * shape[0], (0.3,) * shape[0])


@pytest.fixture
def small_data():
    """61 training, 13 validation and 17 test images of three classes."""
    return ImageData(
        "pictures",
        pictures(61),
        pictures(13, seed=1),
        ("a", "b", "c"),
        lambda: pictures(17, seed=2),
    )


@pytest.fixture
def small_recipe():
    return Recipe(
        epochs=3,
        batch_size=16,
        lr=0.05,
        crop_padding=2,
        cutout=3,
        precision="fp32",
        memory_format="contiguous",
    )


def network(seed=0, classes=3, dropout=0.3, channels=3):
    """A tiny network with everything whose state matters: normalisation, dropout, biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(20, classes),
        )


@pytest.fixture
def make_network():
    return network


@pytest.fixture
def make_pictures():
    return pictures


@pytest.fixture
def write_npz(tmp_path):
    """Write a correct npz with some arrays replaced; None leaves an array out."""

    def write(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (40, 7, 5), dtype=np.uint8),
            "y_train": np.arange(40) % 4,
            "x_test": rng.integers(0, 256, (8, 7, 5), dtype=np.uint8),
            "y_test": np.arange(8) % 4,
        } | changes
        path = tmp_path / "set.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write
