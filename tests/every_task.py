"""One small task of every kind with a network for it: what all of training must take.

A ready-made task is one more line of `TASKS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from convwright.training import ArrayImages, ImageData, Recipe
from convwright.training.tasks import Metric, Task

COUNT, SIZE = 12, 6  # samples to train on, per batch


class Kind(NamedTuple):
    """How to make a task and a network for it."""

    task: Callable[[], object]
    network: Callable[[], nn.Module]


class Backbone(nn.Sequential):
    """Two convolutions with norms, of which the first can be cut, and a residual block."""

    def __init__(self, channels=3):
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), Block(6)
        )


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Classifier(nn.Sequential):
    """One score per class."""

    def __init__(self):
        super().__init__(Backbone(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))


class Pair(nn.Module):
    """Compares two images."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(6, 1)

    def forward(self, left, right):
        left, right = (self.backbone(x).mean((2, 3)) for x in (left, right))
        return self.head((left - right).abs()).squeeze(1)


class Named(nn.Module):
    """An image and a number beside it; a dictionary of two answers."""

    def __init__(self):
        super().__init__()
        self.backbone, self.age, self.kind = Backbone(), nn.Linear(7, 1), nn.Linear(7, 3)

    def forward(self, image, weight):
        seen = torch.cat([self.backbone(image).mean((2, 3)), weight], 1)
        return {"age": self.age(seen).squeeze(1), "kind": self.kind(seen)}


class Dense(nn.Sequential):
    """One score per class and pixel."""

    def __init__(self):
        super().__init__(Backbone(), nn.Conv2d(6, 3, 1))


class Several(nn.Module):
    """Images of several sizes in a list; the loss is its own."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(6, 1)

    def forward(self, images):
        return torch.stack([self.head(self.backbone(image[None]).mean((2, 3)))[0, 0] for image in images])


def _drawn(part, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(part)))


class _Own(Task):
    """Batches of `SIZE` from `sample(part, count)`, a pair of nests with the samples in front."""

    parts = ("train", "val", "test")

    def batches(self, part):
        count = COUNT if part == "train" else 7
        inputs, targets = self.sample(part, count)
        for start in range(0, count, SIZE):
            yield tuple(_rows(nest, slice(start, start + SIZE)) for nest in (inputs, targets))


def _rows(nest, which):
    if isinstance(nest, tuple):
        return tuple(_rows(each, which) for each in nest)
    return {key: each[which] for key, each in nest.items()} if isinstance(nest, dict) else nest[which]


class Pairs(_Own):
    """Whether two images are alike: two inputs."""

    metric = Metric("right")

    def sample(self, part, count):
        images = _drawn(part, 2, count, 3, 8, 8)
        same = torch.arange(count) % 2
        images[1] = torch.where(same.view(-1, 1, 1, 1) > 0, images[0], images[1])
        return (images[0], images[1]), same.float()

    def loss(self, model, batch):
        return F.binary_cross_entropy_with_logits(self.forward(model, batch[0]), batch[1])

    def metrics(self, model, part):
        right = count = 0
        for inputs, same in self.on_device(model, part):
            right += ((self.forward(model, inputs) > 0).float() == same).sum()
            count += len(same)
        return {"right": float(right) / count}


class Ages(_Own):
    """Inputs by name, and two targets."""

    def sample(self, part, count):
        image, weight = _drawn(part, count, 3, 8, 8), _drawn(part, count, 1)
        return {"image": image, "weight": weight}, {"age": weight[:, 0], "kind": torch.arange(count) % 3}

    def loss(self, model, batch):
        found, wanted = self.forward(model, batch[0]), batch[1]
        return F.mse_loss(found["age"], wanted["age"]) + F.cross_entropy(found["kind"], wanted["kind"])


class Maps(_Own):
    """A class for each pixel: dense outputs."""

    class_names = ("dark", "middle", "bright")

    def sample(self, part, count):
        images = _drawn(part, count, 3, 8, 8)
        return images, (images.mean(1) * 3).long()

    def loss(self, model, batch):
        return F.cross_entropy(self.forward(model, batch[0]), batch[1])


class Sizes(_Own):
    """Images of several sizes: a batch is a list."""

    def sample(self, part, count):
        images = [_drawn(part, 3, 8 + place % 3, 8) for place in range(count)]
        return images, torch.arange(count) / count

    def loss(self, model, batch):
        return F.mse_loss(self.forward(model, batch[0]), batch[1])


def _pictures():
    def part(count, seed):
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 100, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
        images = (noise + labels.view(-1, 1, 1, 1) * 70).to(torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        return ArrayImages(images, labels, (0.4,) * 3, (0.3,) * 3)

    return ImageData("pictures", part(COUNT, 0), part(7, 1), ("a", "b", "c"), lambda: part(7, 2))


TASKS = {
    "classification": Kind(_pictures, Classifier),
    "two inputs": Kind(Pairs, Pair),
    "inputs by name": Kind(Ages, Named),
    "dense": Kind(Maps, Dense),
    "lists": Kind(Sizes, Several),
}


def made(name, seed=0):
    """Return a task and a network with the weights of a seed."""
    kind = TASKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.task(), kind.network()


def recipe(**changes):
    """Return a recipe of few steps."""
    plain = {"precision": "fp32", "memory_format": "contiguous", "crop_padding": 2, "label_smoothing": 0.0}
    return Recipe(**{"epochs": 1, "batch_size": SIZE, "lr": 0.05, **plain, **changes})
