"""What the trainer costs: against a bare loop, and its data against a ResNet-20 step.

usage: python benchmarks/training.py [--repeats 8] [--steps 12] [--threads 1]
       [--precision bf16 fp32] [--seed 0] [--network resnet20]

Paired and interleaved: each repeat runs a block of the trainer and a block of the bare loop, one after
the other and in alternating order, on the same network, images, order, precision and layout. The median
of the repeats' ratios is reported, with quartiles. Prints a table and writes
benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import convwright
from convwright import zoo
from convwright.training import ArrayImages, ImageData, Loader, Recipe, train
from convwright.training.recipe.optimizers import build_optimizer
from convwright.training.recipe.schedules import Position
from convwright.training.settings import autocast, to_layout

RESULTS = Path(__file__).parent / "results" / "training.json"
BATCH = 128


def random_images(count: int, seed: int) -> ImageData:
    """CIFAR-sized noise: timing does not look at the pictures."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    train_part = ArrayImages(images, labels, (0.5,) * 3, (0.25,) * 3)
    return ImageData("noise", train_part, None, tuple("0123456789"))


def recipe_for(precision: str, layout: str, seed: int) -> Recipe:
    """Three short epochs with every augmentation on."""
    return Recipe(
        epochs=3,
        batch_size=BATCH,
        crop_padding=4,
        hflip=True,
        cutout=8,
        precision=precision,
        memory_format=layout,
        seed=seed,
    )


def clocks() -> tuple[float, float]:
    """Wall time and processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def by_trainer(model: nn.Module, data: ImageData, recipe: Recipe) -> list[tuple[float, float]]:
    """Train; return the clocks at the end of each epoch."""
    stamps: list[tuple[float, float]] = []
    options = {"accelerator": "cpu", "progress": False}
    train(model, data, recipe, on_epoch=lambda _: stamps.append(clocks()), **options)
    return stamps


def by_hand(model: nn.Module, data: ImageData, recipe: Recipe) -> list[tuple[float, float]]:
    """The same training with nothing around it; return the clocks at the end of each epoch."""
    device, stamps = torch.device("cpu"), []
    last = recipe.memory_format == "channels_last"
    to_layout(model, torch.channels_last if last else torch.contiguous_format)
    loader = Loader(data.train, BATCH, augment=recipe.augment, seed=recipe.seed, channels_last=last)
    optimizer = build_optimizer(model, recipe)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    model.train()
    step, total = 0, recipe.epochs * len(loader)
    for _ in range(recipe.epochs):
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.rates(Position(step, total)).factor
            with autocast(device, recipe.precision):
                scores = model(images)
            criterion(scores.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        stamps.append(clocks())
    return stamps


def overhead(network: nn.Module, data: ImageData, recipe: Recipe, repeats: int) -> dict:
    """Time epochs of the trainer and of the bare loop, `repeats` times in turn.

    The first epoch of each block warms up and holds the start; the others are compared one by one.
    Processor time is given beside wall time: on a busy machine it is the steadier of the two.
    """
    wall, processor, epoch_ms = [], [], []
    same = True
    for repeat in range(repeats):
        models = {work: copy.deepcopy(network) for work in (by_trainer, by_hand)}
        order = (by_trainer, by_hand) if repeat % 2 else (by_hand, by_trainer)
        stamps = {work: work(models[work], data, recipe) for work in order}
        lengths = {work: [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps[work])] for work in order}
        for ours, theirs in zip(lengths[by_trainer], lengths[by_hand], strict=True):
            wall.append(ours[0] / theirs[0])
            processor.append(ours[1] / theirs[1])
            epoch_ms.append(theirs[1] * 1e3)
        pairs = zip(*(model.parameters() for model in models.values()), strict=True)
        same = same and all(torch.equal(a, b) for a, b in pairs)
    quartiles = statistics.quantiles(processor, n=4)
    return {
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "same_weights": same,
        "bare_epoch_ms": statistics.median(epoch_ms),
        "wall_ratio": statistics.median(wall),
        "cpu_ratio": statistics.median(processor),
        "cpu_ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def loading_share(network: nn.Module, data: ImageData, recipe: Recipe, repeats: int) -> dict:
    """Time fetching, augmenting and normalising a batch against the rest of a step."""
    model = copy.deepcopy(network)
    last = recipe.memory_format == "channels_last"
    to_layout(model, torch.channels_last if last else torch.contiguous_format)
    optimizer = build_optimizer(model, recipe)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    loader = Loader(data.train, BATCH, augment=recipe.augment, channels_last=last)
    shares, loads, steps = [], [], []
    for repeat in range(repeats + 1):
        load = step = 0.0
        batches = iter(loader)
        for _ in range(len(loader)):
            start = time.perf_counter()
            images, labels = next(batches)
            fetched = time.perf_counter()
            with autocast(torch.device("cpu"), recipe.precision):
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            load += fetched - start
            step += time.perf_counter() - fetched
        if repeat:
            shares.append(load / (load + step))
            loads.append(load * 1e3 / len(loader))
            steps.append(step * 1e3 / len(loader))
    return {
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "load_ms": statistics.median(loads),
        "step_ms": statistics.median(steps),
        "share": statistics.median(shares),
        "share_max": max(shares),
    }


def table(title: str, rows: list[dict], columns: dict[str, str]) -> Table:
    """Lay out rows; `columns` maps names to formats."""
    result = Table(title=title)
    for name in columns:
        result.add_column(name, justify="right")
    for row in rows:
        result.add_row(*(form.format(row[name]) for name, form in columns.items()))
    return result


def machine() -> dict:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="steps per block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", nargs="+", default=["bf16"], help="bf16, fp32 or both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet20")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    network = zoo.create(arguments.network)
    data = random_images(arguments.steps * BATCH, arguments.seed)
    recipes = [recipe_for(p, "channels_last", arguments.seed) for p in arguments.precision]
    overheads = [overhead(network, data, recipe, arguments.repeats) for recipe in recipes]
    shares = [loading_share(network, data, recipe, arguments.repeats) for recipe in recipes]
    common = {"precision": "{}", "memory_format": "{}"}
    console = Console(width=110)
    console.print(
        table(
            f"Trainer against a bare loop: {arguments.network}, batch {BATCH}",
            overheads,
            {**common, "cpu_ratio": "{:.3f}", "wall_ratio": "{:.3f}"}
            | {"cpu_ratio_quartiles": "{0[0]:.3f} .. {0[1]:.3f}", "same_weights": "{}"},
        ),
        table(
            "Loading and augmentation within a step (crop 4, flip, cutout 8)",
            shares,
            {**common, "load_ms": "{:.2f}", "step_ms": "{:.1f}"} | {"share": "{:.2%}", "share_max": "{:.2%}"},
        ),
    )
    report = {
        "command": f"python benchmarks/training.py {' '.join(sys.argv[1:])}".strip(),
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "steps_per_block": arguments.steps,
        "network": arguments.network,
        "batch_size": BATCH,
        "versions": {
            "convwright": convwright.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(),
        "overhead": overheads,
        "loading": shares,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
