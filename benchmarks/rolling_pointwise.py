"""Time the implementations of the rolling pointwise convolution, beside the plain 1x1 convolutions it competes with.

Two tables, on one core. All layers of a row are timed in turn, round by round, and ratios are medians over the rounds
of times measured next to each other, since other processes may slow down some rounds.

1. The goal: one training step (forward and backward through input and weight) of the layer as it is, with
   ``implementation="auto"``, at 256 channels, batch 64 and 16 x 16 positions, for 2, 4 and 8 groups, both orders, and
   both memory formats. It shall take no longer than the dense 1x1 convolution it replaces, and at most 1.3 times as
   long as a grouped 1x1 convolution of as many weights.
2. The rule that ``auto`` follows in training mode: milliseconds of a training step by each implementation, and of a
   forward pass without gradients, over other shapes. ``train_auto_over_best`` is what ``auto`` takes over the fastest,
   as the geometric mean of all shapes; beside it stands the same of always taking one implementation. Times here are
   the shortest of the rounds.

Before, the implementations are checked against each other.

Run ``python benchmarks/rolling_pointwise.py``; the tables go to the terminal, the numbers to
``results/rolling_pointwise.json``. Exit code 1 if the goal is missed in any row, or always taking one implementation
is better than the rule.
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
NAMES = ("windows", "dense")
GOAL_SHAPE = (256, 64, 16)
MOST_OVER_DENSE, MOST_OVER_GROUPED = 1.0, 1.3


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def train_step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Run forward and backward."""
    layer(x).backward(gradient)
    layer.zero_grad()
    x.grad = None


def infer(layer: nn.Module, x: Tensor) -> None:
    """Run forward only."""
    with torch.no_grad():
        layer(x)


def rolling(channels: int, groups: int, overlap: float, order: str, name: str) -> nn.Module:
    """Return one implementation, with weights that depend on the sizes only."""
    torch.manual_seed(0)
    return RollingPointwiseConv2d(channels, channels, groups, overlap, order, bias=False, implementation=name)


def images(channels: int, batch: int, side: int, form: str) -> tuple[Tensor, Tensor]:
    """Return an input and a gradient of the output."""
    x, gradient = (torch.randn(batch, channels, side, side).to(memory_format=FORMATS[form]) for _ in range(2))
    return x.requires_grad_(), gradient


def rounds_of(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each call once per round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    return {name: some[1:] for name, some in times.items()}


def check(layers: dict[str, nn.Module], x: Tensor) -> None:
    """Compare the outputs of implementations."""
    with torch.no_grad():
        first, *others = (layer(x) for layer in layers.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)


def goal_rows(groups: int, form: str, rounds: int) -> list[dict[str, Any]]:
    """Time the layer beside a dense and a grouped convolution, in both orders."""
    channels, batch, side = GOAL_SHAPE
    x, gradient = images(channels, batch, side, form)
    orders = ("interleaved", "blocked")
    layers: dict[str, nn.Module] = {
        "dense": nn.Conv2d(channels, channels, 1, bias=False),
        "grouped": nn.Conv2d(channels, channels, 1, groups=groups, bias=False),
        **{order: rolling(channels, groups, 0.5, order, "auto") for order in orders},
    }
    for order in orders:
        check({"auto": layers[order], "dense": rolling(channels, groups, 0.5, order, "dense")}, x)
    for layer in layers.values():
        layer.to(memory_format=FORMATS[form])
    times = rounds_of({n: lambda m=m: train_step(m, x, gradient) for n, m in layers.items()}, rounds)
    rows = []
    for order in orders:
        row = {"groups": groups, "format": form, "order": order, "auto": layers[order]._chosen()}
        row |= {f"{name}_ms": round(statistics.median(times[name]), 2) for name in ("dense", "grouped")}
        row["rolling_ms"] = round(statistics.median(times[order]), 2)
        for name in ("dense", "grouped"):
            pairs = zip(times[order], times[name], strict=True)
            row[f"over_{name}"] = round(statistics.median(ours / other for ours, other in pairs), 3)
        row["met"] = row["over_dense"] <= MOST_OVER_DENSE and row["over_grouped"] <= MOST_OVER_GROUPED
        rows.append(row)
    return rows


def rule_row(channels: int, batch: int, side: int, groups: int, overlap: float, form: str, rounds: int) -> dict:
    """Time each implementation at one shape."""
    x, gradient = images(channels, batch, side, form)
    layers = {name: rolling(channels, groups, overlap, "interleaved", name) for name in NAMES}
    check(layers, x)
    auto = RollingPointwiseConv2d(channels, channels, groups, overlap, bias=False)
    row: dict[str, Any] = {
        "channels": channels, "batch": batch, "side": side, "groups": groups, "overlap": overlap, "format": form,
        "windows": auto.windows, "auto": auto._chosen(),
    }  # fmt: skip
    layers["plain"] = nn.Conv2d(channels, channels, 1, bias=False)
    train = rounds_of({n: lambda m=m: train_step(m, x, gradient) for n, m in layers.items()}, rounds)
    row |= {f"train_{name}": round(min(times), 3) for name, times in train.items()}
    evaluation = rounds_of({n: lambda m=m: infer(m, x) for n, m in layers.items()}, rounds)
    return row | {f"eval_{name}": round(min(times), 3) for name, times in evaluation.items()}


def summarise(goal: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the worst ratios of the goal, and geometric means of times over the best times."""

    def over_best(chosen: Callable[[dict[str, Any]], str], some: list[dict[str, Any]]) -> float:
        ratios = [row[f"train_{chosen(row)}"] / min(row[f"train_{name}"] for name in NAMES) for row in some]
        return round(statistics.geometric_mean(ratios), 3)

    summary: dict[str, Any] = {"shapes": len(rows), "goal_rows": len(goal)}
    summary |= {f"goal_worst_over_{name}": max(row[f"over_{name}"] for row in goal) for name in ("dense", "grouped")}
    summary["goal_met"] = all(row["met"] for row in goal)
    summary |= {f"train_{name}_over_best": over_best(lambda _, name=name: name, rows) for name in NAMES}
    summary["train_auto_over_best"] = over_best(lambda row: row["auto"], rows)
    for form in FORMATS:
        some = [row for row in rows if row["format"] == form]
        summary |= {f"train_{name}_over_best_{form}": over_best(lambda _, name=name: name, some) for name in NAMES}
        summary[f"train_auto_over_best_{form}"] = over_best(lambda row: row["auto"], some)
    ratios = [row["eval_windows"] / row["eval_dense"] for row in rows]
    summary["eval_windows_over_dense"] = round(statistics.geometric_mean(ratios), 3)
    others = min(summary[f"train_{name}_over_best"] for name in NAMES)
    summary["rule_met"] = summary["train_auto_over_best"] <= others
    summary["met"] = summary["goal_met"] and summary["rule_met"]
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
        "note": "shared with other processes; ratios are medians of paired rounds",
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of the goal; a third of them for each other shape")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    goal = []
    for form in FORMATS:
        for groups in (2, 4, 8):
            goal += goal_rows(groups, form, options.rounds)
            for row in goal[-2:]:
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    print("channels batch side groups overlap format | train windows, dense, plain [ms] | auto")
    rows = []
    for channels, batch, side in SHAPES:
        for groups, overlap in SETTINGS:
            for form in FORMATS:
                row = rule_row(channels, batch, side, groups, overlap, form, max(2, options.rounds // 3))
                rows.append(row)
                times = " ".join(f"{row[f'train_{name}']:8.2f}" for name in (*NAMES, "plain"))
                sizes = f"{channels:5d} {batch:3d} {side:3d} {groups} {overlap:4} {form}"
                print(sizes, times, row["auto"], flush=True)
    summary = summarise(goal, rows)
    print(json.dumps(summary, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    changed = options.rounds != parser.get_default("rounds")
    record = {
        "command": "python benchmarks/rolling_pointwise.py" + (f" --rounds {options.rounds}" if changed else ""),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("convwright", "torch")},
        },
        "machine": machine(),
        "summary": summary,
        "goal": {"channels": GOAL_SHAPE[0], "batch": GOAL_SHAPE[1], "side": GOAL_SHAPE[2], "rows": goal},
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
