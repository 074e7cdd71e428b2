"""The data that the recorded runs in `tests/assets/runs` were made with."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def lines(tmp_path_factory):
    """Their file: each class is a bar at a height of its own."""
    numbers = np.random.default_rng(0)
    labels = np.arange(600) % 10
    images = numbers.integers(0, 60, (600, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8, 4:24] += np.uint8(150)
    file = tmp_path_factory.mktemp("data") / "lines.npz"
    np.savez(file, x_train=images[:500], y_train=labels[:500], x_test=images[500:], y_test=labels[500:])
    return file
