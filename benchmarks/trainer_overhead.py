"""What the trainer costs beside a loop that a user would write, for tasks of several kinds.

usage: python benchmarks/trainer_overhead.py [--repeats 8] [--steps 8] [--batch 32]

Each task's batches and loss are its own; the bare loop does nothing but step. Paired and interleaved, as in
benchmarks/training.py: epochs of the two in turn, the first one of each block being a warm-up. The median of the ratios
of processor times is reported, with quartiles, and the weights of both must be the same. Prints a line per task and
writes benchmarks/results/trainer_overhead.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from training import clocks, machine, random_images

import convwright
from convwright import zoo
from convwright.architecture.capture.pytrees import samples_in
from convwright.training import Loader, Recipe, train
from convwright.training.recipe.optimizers import build_optimizer
from convwright.training.recipe.schedules import Position
from convwright.training.tasks import Task

RESULTS = Path(__file__).parent / "results" / "trainer_overhead.json"


class Pairs(Task):
    """Whether two images are alike."""

    parts = ("train",)

    def __init__(self, count: int, batch: int) -> None:
        images = torch.rand(2, count, 3, 32, 32)
        self.loader = DataLoader(TensorDataset(images[0], images[1], torch.arange(count) % 2), batch)

    def batches(self, part: str):
        """Two images, and whether they are alike."""
        return (((left, right), same.float()) for left, right, same in self.loader)

    def loss(self, model, batch):
        """Return the cross-entropy of the answer."""
        return F.binary_cross_entropy_with_logits(self.forward(model, batch[0]), batch[1])


class Siamese(nn.Module):
    """One ResNet-20 looks at both."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.head = zoo.create("resnet20", num_classes=16), nn.Linear(16, 1)

    def forward(self, left, right):
        """Return one number per pair."""
        return self.head((self.seen(left) - self.seen(right)).abs()).squeeze(1)


class Maps(Task):
    """A class for each pixel."""

    parts = ("train",)

    def __init__(self, count: int, batch: int) -> None:
        images = torch.rand(count, 3, 32, 32)
        self.loader = DataLoader(TensorDataset(images, (images.mean(1) * 5).long()), batch)

    def batches(self, part: str):
        """Images and maps."""
        return self.loader

    def loss(self, model, batch):
        """Return the cross-entropy over all pixels."""
        return F.cross_entropy(self.forward(model, batch[0]), batch[1])


def convolutional(*widths: int) -> nn.Sequential:
    """Return 3x3 convolutions with batch norm, and a score per class and pixel."""
    layers: list[nn.Module] = []
    for before, after in pairwise((3, *widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 5, 1))


def by_trainer(model, task, recipe):
    """Train; return the clocks at the end of each epoch."""
    stamps = []
    train(model, task, recipe, on_epoch=lambda _: stamps.append(clocks()), accelerator="cpu", progress=False)
    return stamps


def by_hand(model, task, recipe):
    """Step with nothing around it; return the clocks at the end of each epoch."""
    own, stamps = isinstance(task, Task), []
    how = {"augment": recipe.augment, "seed": recipe.seed, "channels_last": False}
    loader = None if own else Loader(task.train, recipe.batch_size, **how)
    optimizer, loss_of = build_optimizer(model, recipe), task.training_loss(recipe)
    model.train()
    step, total = 0, recipe.epochs * (sum(1 for _ in task.batches("train")) if own else len(loader))
    for _ in range(recipe.epochs):
        for batch in task.batches("train") if own else loader:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.rates(Position(step, total)).factor
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        stamps.append(clocks())
    return stamps


def measured(name: str, task, network: nn.Module, recipe: Recipe, repeats: int) -> dict:
    """Return the ratios of the trainer's epochs to the bare loop's."""
    wall, processor, step_ms, same = [], [], [], True
    sizes = [samples_in(batch[0]) for batch in task.batches("train")] if isinstance(task, Task) else None
    steps = len(sizes) if sizes else -(-len(task.train) // recipe.batch_size)
    for repeat in range(repeats):
        models = {work: copy.deepcopy(network) for work in (by_trainer, by_hand)}
        order = (by_trainer, by_hand) if repeat % 2 else (by_hand, by_trainer)
        stamps = {work: work(models[work], task, recipe) for work in order}
        lengths = {work: [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps[work])] for work in order}
        for ours, theirs in zip(lengths[by_trainer], lengths[by_hand], strict=True):
            wall.append(ours[0] / theirs[0])
            processor.append(ours[1] / theirs[1])
            step_ms.append(theirs[1] * 1e3 / steps)
        pairs = zip(*(model.parameters() for model in models.values()), strict=True)
        same = same and all(torch.equal(a, b) for a, b in pairs)
    quartiles = statistics.quantiles(processor, n=4)
    row = {
        "task": name,
        "bare_step_ms": statistics.median(step_ms),
        "cpu_ratio": statistics.median(processor),
        "cpu_ratio_quartiles": [quartiles[0], quartiles[2]],
        "wall_ratio": statistics.median(wall),
        "same_weights": same,
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="steps per epoch")
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = asked.steps * asked.batch
    tasks = {
        "classification: ResNet-20": (random_images(count, 0), zoo.create("resnet20")),
        "two inputs: siamese ResNet-20": (Pairs(count, asked.batch), Siamese()),
        "dense: five convolutions": (Maps(count, asked.batch), convolutional(16, 32, 32, 16)),
    }
    plain = {"precision": "fp32", "memory_format": "contiguous", "label_smoothing": 0.0, "weight_decay": 0.0}
    recipe = Recipe(epochs=3, batch_size=asked.batch, lr=0.01, **plain)
    rows = [measured(name, *parts, recipe, asked.repeats) for name, parts in tasks.items()]
    versions = {"convwright": convwright.__version__, "torch": torch.__version__, "python": platform.python_version()}
    report = {
        "command": f"python benchmarks/trainer_overhead.py {' '.join(sys.argv[1:])}".strip(),
        "repeats": asked.repeats,
        "steps_per_epoch": asked.steps,
        "batch_size": asked.batch,
        "versions": versions,
        "machine": machine(),
        "tasks": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
