import os

import numpy as np
import pytest
from latency_world import World

from convwright.cost.runtimes import Target
from convwright.training import Recipe

NETWORK = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x, y):
        return x + y


class Sides(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.inner = Tiny(num_classes)

    def forward(self, x):
        return {"scores": self.inner(x)}


class Several(Sides):
    def forward(self, x):
        return {"scores": self.inner(x), "features": x}
"""


@pytest.fixture(autouse=True)
def no_local_data(monkeypatch, tmp_path):
    """No test may find data sets of the machine, or download any; run directories lie in tmp_path."""
    monkeypatch.delenv("CONVWRIGHT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path):
    """The name of a network with 3 free choices, in a file."""
    (tmp_path / "net.py").write_text(NETWORK)
    return "net.py:Tiny"


@pytest.fixture
def pictures(tmp_path):
    """The name of a set of 200 generated grey 8x8 images of three classes, and 60 test images."""
    rng = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count) % 3
        noise = rng.integers(0, 110, (count, 8, 8))
        return (noise + labels[:, None, None] * 60).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = part(200), part(60)
    np.savez(tmp_path / "set.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return "npz:set.npz"


@pytest.fixture
def plain():
    """A recipe in which nothing is left to a measurement."""
    return Recipe(epochs=2, batch_size=32, lr=0.05, crop_padding=1, precision="fp32", memory_format="contiguous")


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A made-up machine in the place of this one, for whole runs."""
    world = World(tmp_path / "latencies")
    monkeypatch.setattr("convwright.runs.latency.LatencyTable", world.table)
    monkeypatch.setattr("convwright.runs.latency.measure_latency", world.measure)
    monkeypatch.setattr("convwright.runs.latency.compare_latency", world.compare)
    monkeypatch.setattr("convwright.runs.latency.surface_of", lambda *_: None)
    monkeypatch.setattr("convwright.runs.latency.installed", lambda device: (Target("eager"),))
    return world
