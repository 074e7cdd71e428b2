"""Time reading, planning and applying, beside torch-pruning's graph and prune, on 30 networks at 96 pixels.

Measured in one process on one thread, each the least of a few runs of processor time, in turns:

* ``read``: ``cw.read``; ``export``: the same with ``capture="export"``, once;
* ``change``: edits that halve all groups, applied without and with the float64 proof (``verify``);
* ``torch_pruning``: a copy of the network, ``MagnitudePruner`` (graph and groups) and ``step`` at one half.

Run ``python benchmarks/reading.py``; the table goes to the terminal, the numbers to ``results/reading.json``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import convwright as cw
from convwright.architecture.reading import create
from convwright.edits.proportional import proportional_widths

RESULTS = Path(__file__).parent / "results" / "reading.json"
SIDE = 96
TORCHVISION = (
    "alexnet", "vgg11_bn", "vgg16", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "wide_resnet50_2", "squeezenet1_1", "densenet121", "densenet169", "googlenet", "shufflenet_v2_x1_0", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_b2", "regnet_x_400mf",
    "regnet_y_400mf", "mnasnet1_0", "convnext_tiny",
)  # fmt: skip
TIMM = ("resnet26", "dla34", "hrnet_w18_small", "vovnet39a", "ghostnet_100", "skresnet18")
NETWORKS = (*(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM))


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of some runs, each after a garbage collection."""
    found = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def measured(name: str, repeats: int) -> dict[str, Any]:
    """Return the times of one network."""
    model, _, _ = create(name)
    model.eval()
    image = torch.zeros(1, 3, SIDE, SIDE)

    def changed(verify: bool) -> None:
        arch = cw.read(model, image)
        arch.apply(*proportional_widths(arch, 0.5), verify=verify)

    times: dict[str, Any] = {
        "network": name,
        "read": seconds(lambda: cw.read(model, image), repeats),
        "change": seconds(lambda: changed(False), repeats),
        "change_proved": seconds(lambda: changed(True), repeats),
        "export": seconds(lambda: cw.read(model, image, capture="export"), 1),
    }
    try:
        times["torch_pruning"] = seconds(lambda: pruned(model, image), repeats)
    except Exception as error:  # a rival's failure is a result, not ours to mend
        times["torch_pruning_note"] = f"{type(error).__name__}: {error}"[:200]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in times.items()}


def pruned(model: nn.Module, image: torch.Tensor) -> None:
    """Halve a copy with torch-pruning; the last linear layer keeps its outputs, as ours does."""
    import torch_pruning

    twin = copy.deepcopy(model)
    last = [module for module in twin.modules() if isinstance(module, nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.MagnitudePruner(
        twin, image, importance=importance, pruning_ratio=0.5, ignored_layers=last
    ).step()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians and the largest of the ratios."""
    both = [row for row in rows if "torch_pruning" in row]
    found: dict[str, Any] = {"networks": len(rows), "torch_pruning_done": len(both)}
    for key in ("read", "export"):
        found[f"{key}_median"] = statistics.median(row[key] for row in rows)
    for key in ("change", "change_proved"):
        ratios = [row[key] / row["torch_pruning"] for row in both]
        found |= {f"{key}_ratio_median": round(statistics.median(ratios), 2), f"{key}_ratio_max": round(max(ratios), 2)}
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in options.networks:
        rows.append(measured(name, options.repeats))
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    packages = ("torch", "torchvision", "timm", "torch-pruning")
    record = {
        "command": " ".join(["python benchmarks/reading.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "machine": {"cores": os.cpu_count(), "threads_used": 1, "system": platform.system()},
        "summary": summary(rows),
        "rows": rows,
    }
    print(json.dumps(record["summary"], indent=2))
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
