"""A search around a plain PyTorch loop, and the same by a shell command: 10,000 images of Fashion-MNIST, half the MACs.

    python benchmarks/own_loop.py [--threads 1]

The network is trained by the loop first; `saliency` cuts it by the loop's own loss, `uniform` stands beside it. The
untouched network is trained as long. Validation scores; the test images are looked at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import convwright as cw
from convwright.runs.directory.provenance import machine, versions
from convwright.runs.train_command import search_by_command

RESULTS = Path(__file__).parent / "results" / "own_loop.json"
FIRST, TUNE = 6, 3  # epochs
RATES = {True: 0.05, False: 0.01}  # of a first training, and of trained weights


class Net(nn.Sequential):
    """Six convolutions."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def parts() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and labels of each part."""
    data = cw.load_data("fashion-mini")
    sets = {"train": data.train, "val": data.val, "test": data.test}
    return {part: ((each.images.float() / 255 - 0.29) / 0.35, each.labels) for part, each in sets.items()}


def fit(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, first: bool = False, seed: int = 0) -> None:
    """Train by SGD, the rate falling to 0."""
    images, labels = data
    order, size = torch.Generator().manual_seed(seed), 100
    optimizer = torch.optim.SGD(model.parameters(), RATES[first], 0.9, weight_decay=5e-4, nesterov=True)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, max(1, epochs * (len(labels) // size)))
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(size)[: len(labels) // size]:
            optimizer.zero_grad()
            cross_entropy(model.train()(images[batch]), labels[batch]).backward()
            optimizer.step()
            falling.step()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of images that are told right."""
    with torch.no_grad():
        told = torch.cat([model.eval()(images).argmax(1) for images in data[0].split(500)])
    return float((told == data[1]).float().mean())


def by_loop(model: nn.Module, data: dict[str, tuple[Tensor, Tensor]], method: str, out: Path) -> Any:
    """Search around the loop above."""
    arch = cw.read(model, (1, 28, 28))
    batches = list(zip(*(part[:512].split(32) for part in data["train"]), strict=True))
    how: dict[str, Any] = {"batches": batches, "loss": cross_entropy} if method == "saliency" else {}
    search = cw.Search(arch, "macs<=50%", method, out / method, epochs=0, tune_epochs=TUNE, **how)
    while trial := search.ask():
        network = trial.model()
        fit(network, data["train"], trial.epochs, seed=trial.seed)
        search.tell(trial, accuracy(network, data["val"]))
    return search.result()


def train(given: argparse.Namespace) -> None:
    """Be the command: train the candidate of a plan, leave its weights, print the score."""
    data = parts()
    model = cw.apply(cw.Plan.load(given.plan), Net()).model
    load_model(model, given.weights)
    fit(model, data["train"], int(given.epochs), first=int(given.epochs) == FIRST)
    save_model(model, str(Path(given.out) / "model.safetensors"))
    print(accuracy(model, data["val"]))


def row(name: str, result: Any, data: dict[str, tuple[Tensor, Tensor]], seconds: float) -> dict[str, Any]:
    """Return what a search came to."""
    scores = {"untouched": result.baseline.score, "ours": result.best.score}
    macs = {side: result.data[key]["costs"]["macs"] for side, key in (("untouched", "baseline"), ("ours", "result"))}
    return {
        "way": name,
        "validation": scores,
        "test": accuracy(result.model, data["test"]),
        "macs": macs,
        "seconds": seconds,
    }


def main() -> None:
    """Search by the loop with two methods, then by a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    for name in ("plan", "weights", "out", "epochs"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.plan:
        train(given)
        return
    torch.manual_seed(0)
    data, model, rows = parts(), Net(), []
    fit(model, data["train"], FIRST, first=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for method in ("saliency", "uniform"):
            start = time.perf_counter()
            result = by_loop(model, data, method, out)
            rows.append(row(f"plain loop, {method}", result, data, time.perf_counter() - start))
        command = f"{sys.executable} {__file__} --plan {{plan}} --weights {{weights}} --out {{out}} --epochs {{epochs}}"
        start = time.perf_counter()
        how = {
            "input_shape": "1x28x28",
            "method": "uniform",
            "out": out / "shell",
            "epochs": FIRST,
            "tune_epochs": TUNE,
        }
        result = search_by_command(f"{__file__}:Net", ["macs<=50%"], command, **how)
        rows.append(row("shell command, uniform", result, data, time.perf_counter() - start))
    first = {"validation": accuracy(model, data["val"]), "test": accuracy(model, data["test"])}
    content = {"command": "python benchmarks/own_loop.py", "trained": first, "rows": rows}
    RESULTS.write_text(json.dumps({**content, "versions": versions(), "machine": machine()}, indent=1) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
