"""Images per second of training, with all that stands between the file and the weights.

usage: python benchmarks/pipeline.py --data-dir DIR [--seconds 30] [--rounds 7] [--threads 1]
       [--workers 2] [--network resnet20] [--seed 0]

ResNet-20 on CIFAR-10 with crop and flip, batches of 128:

- ours: convwright's trainer, its own data and augmentation, in the settings that it chooses;
- usual: a plain loop over torchvision's `DataLoader`, PIL transforms and worker processes, float32 and the default
  layout, as people write it;
- usual, our settings: the same loop in our precision and layout, so that the difference left is the pipeline;
- bare step: the same steps on one batch that is never changed, in our settings: no pipeline can be faster;
- bare step, usual settings: likewise for float32 and the default layout;
- ours, with sam: the trainer with sharpness-aware minimisation, two passes per step, where it is there.

The ways are run in turn, round by round, in alternating order; each round gives one number per way, the first one
warms up. Medians and quartiles over the rounds. Prints a table and writes benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from convwright import zoo
from convwright.runs.directory.provenance import machine, portable, versions
from convwright.training import ArrayImages, ImageData, Recipe, load_data, train
from convwright.training.preflight import resolve
from convwright.training.recipe.optimizers import build_optimizer
from convwright.training.settings import autocast, to_layout
from convwright.training.techniques import TECHNIQUES

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
BATCH = 128
Way = Callable[[float], float]  # seconds to spend -> images per second


class _Enough(Exception):  # noqa: N818 - not an error
    """The time of a round is used up."""


class Pictures(Dataset):
    """The same images as torchvision's own CIFAR-10 gives them: one PIL image at a time, transformed."""

    def __init__(self, data: ImageData) -> None:
        assert isinstance(data.train, ArrayImages)
        self.pixels = np.ascontiguousarray(data.train.images.permute(0, 2, 3, 1).contiguous().numpy())
        self.labels = data.train.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image and its class."""
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def recipe_for(seed: int) -> Recipe:
    """Crop and flip, nothing else; precision and layout by measurement."""
    return Recipe(epochs=1000, batch_size=BATCH, crop_padding=4, padding_mode="zero", label_smoothing=0.0, seed=seed)


def ours(network: nn.Module, data: ImageData, recipe: Recipe, passes: int = 1) -> Way:
    """The trainer, stopped at the first batch after the time is used up; `passes` forward passes make a step."""

    def run(seconds: float) -> float:
        model = copy.deepcopy(network)
        clock = _Clock(seconds)
        # A hook on the network is called once per pass and costs nothing beside it.
        hook = model.register_forward_pre_hook(lambda module, inputs: clock.tick(len(inputs[0]), module.training))
        try:
            train(model, data, recipe, progress=False, test=False)
        except _Enough:
            pass
        finally:
            hook.remove()
        return clock.rate() / passes

    return run


class _Clock:
    """Counts the images between the second step and the end of the time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.images, self.last = seconds, 0, 0
        self.start = self.now = 0.0
        self.calls = 0

    def tick(self, images: int, training: bool) -> None:
        """Note that a step begins: the one before it is finished.

        Raises:
            _Enough: The time is used up.
        """
        if not training or images != BATCH:  # a trial before the first step
            return
        now = time.perf_counter()
        self.calls += 1
        if self.calls == 3:  # the first steps allocate, and start the workers
            self.start = now
        elif self.calls > 3:
            self.images += self.last
        self.last, self.now = images, now
        if self.start and now - self.start > self.seconds:
            raise _Enough

    def rate(self) -> float:
        """Return images per second."""
        return self.images / (self.now - self.start)


def looped(network: nn.Module, recipe: Recipe, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Way:
    """A plain loop over batches, in the recipe's precision and layout."""

    def run(seconds: float) -> float:
        model, clock = copy.deepcopy(network).train(), _Clock(seconds)
        last = recipe.memory_format == "channels_last"
        layout = torch.channels_last if last else torch.contiguous_format
        to_layout(model, layout)
        optimizer, criterion = build_optimizer(model, recipe), nn.CrossEntropyLoss()
        iterator = batches()
        try:
            for images, labels in iterator:
                if len(images) < BATCH:
                    continue
                clock.tick(len(images), True)
                optimizer.zero_grad()
                with autocast(torch.device("cpu"), recipe.precision):
                    scores = model(images.contiguous(memory_format=layout))
                criterion(scores.float(), labels).backward()
                optimizer.step()
        except _Enough:
            pass
        return clock.rate()

    return run


def usual_batches(data: ImageData, workers: int) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Return a maker of batches, epoch after epoch, by worker processes that end with it."""
    pictures = Pictures(data)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            pictures, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
        )
        while True:
            yield from loader

    return batches


def fixed(data: ImageData, seed: int) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Return a maker of one and the same batch."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(BATCH, *data.shape, generator=generator), torch.arange(BATCH) % data.num_classes

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield batch

    return batches


def sam_cost(network: nn.Module, data: ImageData, recipe: Recipe) -> dict[str, Way]:
    """Return the trainer with SAM beside `ours`: twice the gradients, and what it adds to them."""
    if "sam" not in TECHNIQUES:
        return {}
    return {"ours, with sam": ours(network, data, TECHNIQUES["sam"].switched(recipe), passes=2)}


def ways(network: nn.Module, data: ImageData, recipe: Recipe, seed: int, workers: int) -> dict[str, Way]:
    """Return everything that is compared, by name."""
    usual = recipe.updated(precision="fp32", memory_format="contiguous")
    pictures = usual_batches(data, workers)
    return {
        "ours": ours(network, data, recipe),
        "usual": looped(network, usual, pictures),
        "usual, our settings": looped(network, recipe, pictures),
        "bare step": looped(network, recipe, fixed(data, seed)),
        "bare step, usual settings": looped(network, usual, fixed(data, seed)),
        **sam_cost(network, data, recipe),
    }


def measured(
    found: dict[str, Way], rounds: int, seconds: float, say: Callable[[str], object]
) -> dict[str, list[float]]:
    """Run all ways in turn; return the images per second of every round but the first."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        names = list(found) if number % 2 else list(reversed(found))
        for name in names:
            rate = found[name](seconds if number else min(seconds, 2.0))
            if number:
                rates[name].append(rate)
                say(f"round {number}: {name}: {rate:,.0f} images per second")
    return rates


def row(name: str, rates: list[float], base: list[float]) -> dict:
    """Sum up one way; ratios are taken round by round."""
    ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
    return {
        "name": name,
        "images_per_second": statistics.median(rates),
        "quartiles": _quartiles(rates),
        "against_usual": statistics.median(ratios),
        "against_usual_quartiles": _quartiles(ratios),
        "rounds": rates,
    }


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return [low, high]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=30.0, help="per way and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    before = os.getloadavg()
    data = load_data("cifar10", arguments.data_dir, val_fraction=0.0)
    network, recipe = zoo.create(arguments.network), recipe_for(arguments.seed)
    chosen = resolve(network, data, recipe, torch.device("cpu"), None)
    recipe = recipe.updated(precision=chosen.precision, memory_format=chosen.memory_format)
    found = ways(network, data, recipe, arguments.seed, arguments.workers)
    rates = measured(found, arguments.rounds, arguments.seconds, lambda text: print(text, file=sys.stderr))
    rows = [row(name, values, rates["usual"]) for name, values in rates.items()]
    table = Table(
        title=f"Images per second, {arguments.network} on CIFAR-10, {chosen.precision} {chosen.memory_format}"
    )
    for column in ("way", "images per second", "quartiles", "against usual"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for each in rows:
        low, high = each["quartiles"]
        rate, ratio = each["images_per_second"], each["against_usual"]
        table.add_row(each["name"], f"{rate:,.0f}", f"{low:,.0f} to {high:,.0f}", f"x {ratio:.2f}")
    Console(width=110).print(table)
    report = {
        "command": portable(f"python benchmarks/pipeline.py {' '.join(sys.argv[1:])}".strip()),
        "network": arguments.network,
        "data": data.name,
        "batch_size": BATCH,
        "precision": chosen.precision,
        "memory_format": chosen.memory_format,
        "workers": arguments.workers,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "versions": versions(),
        "machine": {**machine(), "load_before": list(before), "load_after": list(os.getloadavg())},
        "rows": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
