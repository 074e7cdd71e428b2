"""Time both implementations of the rolling pointwise convolution, beside the plain 1x1 convolution it replaces.

For each shape, in milliseconds and on one core, the shortest of several runs, since other processes only ever slow it
down: one training step (forward and backward through input and weight) and one forward pass without gradients, by the
two implementations ``windows`` and ``dense`` and by a plain pointwise convolution with ``groups`` times the weights.
Before, the two are checked against each other.

The rule that ``implementation="auto"`` follows in training mode is judged by ``train_auto_over_best``: what it takes,
over the faster of the two, as the geometric mean of all shapes; beside it stands the same of always taking either.

Run ``python benchmarks/rolling_pointwise.py``; the table goes to the terminal, the numbers to
``results/rolling_pointwise.json``. Exit code 1 if always taking one implementation is better than the rule.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from convwright.layers import RollingPointwiseConv2d

RESULTS = Path(__file__).parent / "results" / "rolling_pointwise.json"

# (channels, batch, side): the stages of networks for 32 px images, and of ones for 224 px.
SHAPES = [
    (16, 64, 32), (32, 64, 16), (64, 64, 8), (64, 64, 16), (128, 32, 16), (128, 64, 8), (256, 64, 8), (512, 64, 4),
    (64, 2, 56), (128, 2, 28), (256, 2, 14), (512, 2, 7), (512, 2, 14), (1024, 2, 7),
]  # fmt: skip
SETTINGS = [(2, 0.5), (4, 0.5), (8, 0.5), (4, 0.0), (4, 0.75)]  # groups, overlap
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def milliseconds(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest of the runs that fit into some seconds, at least three."""
    for _ in range(2):
        call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def train_step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Run forward and backward."""
    layer(x).backward(gradient)
    layer.zero_grad()
    x.grad = None


def infer(layer: nn.Module, x: Tensor) -> None:
    """Run forward only."""
    with torch.no_grad():
        layer(x)


def measure(channels: int, batch: int, side: int, groups: int, overlap: float, form: str, seconds: float) -> dict:
    """Time one shape."""
    layer = RollingPointwiseConv2d(channels, channels, groups, overlap, bias=False)
    x = torch.randn(batch, channels, side, side).to(memory_format=FORMATS[form]).requires_grad_()
    row: dict[str, Any] = {
        "channels": channels, "batch": batch, "side": side, "groups": groups, "overlap": overlap, "format": form,
        "windows": layer.windows, "auto": "dense" if layer.train()._dense() else "windows",
    }  # fmt: skip
    results = []
    for name in ("windows", "dense", "plain"):
        layer.implementation = name
        module = layer if name != "plain" else nn.Conv2d(channels, channels, 1, bias=False)
        with torch.no_grad():
            results.append(module(x))
        gradient = torch.ones_like(results[-1])
        row[f"train_{name}"] = round(milliseconds(lambda m=module, g=gradient: train_step(m, x, g), seconds), 3)
        row[f"eval_{name}"] = round(milliseconds(lambda m=module: infer(m, x), seconds), 3)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    return row


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric means of times over the best times."""

    def over_best(mode: str, chosen: Callable[[dict[str, Any]], str]) -> float:
        ratios = [row[f"{mode}_{chosen(row)}"] / min(row[f"{mode}_windows"], row[f"{mode}_dense"]) for row in rows]
        return round(statistics.geometric_mean(ratios), 3)

    summary: dict[str, Any] = {"shapes": len(rows)}
    for mode in ("train", "eval"):
        for name in ("windows", "dense"):
            summary[f"{mode}_{name}_over_best"] = over_best(mode, lambda _, name=name: name)
    summary["train_auto_over_best"] = over_best("train", lambda row: row["auto"])
    for channels in sorted({row["channels"] for row in rows}):
        some = [row for row in rows if row["channels"] == channels]
        for mode in ("train", "eval"):
            ratios = [row[f"{mode}_windows"] / row[f"{mode}_dense"] for row in some]
            summary[f"{mode}_windows_over_dense_{channels}"] = round(statistics.geometric_mean(ratios), 2)
    others = min(summary["train_windows_over_best"], summary["train_dense_over_best"])
    summary["met"] = summary["train_auto_over_best"] <= others
    return summary


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "system": platform.system(),
        "note": "shared with other processes; shortest runs are kept",
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.15, help="per measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("channels batch side groups overlap format | train windows, dense, plain | eval windows, dense, plain [ms]")
    rows = []
    for channels, batch, side in SHAPES:
        for groups, overlap in SETTINGS:
            for form in FORMATS:
                row = measure(channels, batch, side, groups, overlap, form, options.seconds)
                rows.append(row)
                times = [f"{row[f'{m}_{n}']:8.2f}" for m in ("train", "eval") for n in ("windows", "dense", "plain")]
                print(f"{channels:5d} {batch:3d} {side:3d} {groups} {overlap:4} {form} {' '.join(times)}", flush=True)
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    changed = options.seconds != parser.get_default("seconds")
    record = {
        "command": "python benchmarks/rolling_pointwise.py" + (f" --seconds {options.seconds}" if changed else ""),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("convwright", "torch")},
        },
        "machine": machine(),
        "summary": summary,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
