"""Time the cost model: how many ResNet-50 width candidates per second, on one core.

MACs and parameters of each candidate are both evaluated, exactly; checks of the widths included. The best of
several repeats is kept, since other processes only ever slow it down. The model is first checked against the profile
of the network, and a few candidates against the same ones evaluated singly.

Run ``python benchmarks/cost_model.py``; the numbers go to the terminal and to ``results/cost_model.json``. Exit code 1
below 100,000 candidates per second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch

import convwright
from convwright.architecture import read
from convwright.cost import CostModel, costs_of, profile

RESULTS = Path(__file__).parent / "results" / "cost_model.json"
REQUIRED = 100_000


def best_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(name: str, candidates: int, repeats: int) -> dict[str, Any]:
    """Time profile, making the model, and evaluating it."""
    arch = read(name)
    costs = profile(arch)
    model = CostModel.of(arch)
    assert model.costs({}) == costs_of(costs)
    units = model.sizes // model.steps
    draws = np.random.default_rng(0).integers(1, 2 * units, size=(candidates, len(units)), endpoint=True)
    widths = draws * model.steps
    assert [model.macs(row) for row in widths[:5]] == model.macs(widths)[:5].tolist()
    functions = {
        "macs_and_params": lambda: (model.macs(widths), model.params(widths)),
        "macs": lambda: model.macs(widths),
        "params": lambda: model.params(widths),
        "activation_bytes": lambda: model.activation_bytes(widths),
        "all_four": lambda: model.costs(widths),
    }
    rates = {key: round(candidates / best_seconds(f, repeats)) for key, f in functions.items()}
    return {
        "network": name,
        "groups": len(model.groups),
        "candidates": candidates,
        "repeats": repeats,
        "profile_seconds": round(best_seconds(lambda: profile(arch), repeats), 4),
        "build_seconds": round(best_seconds(lambda: CostModel.of(arch), repeats), 4),
        "candidates_per_second": rates,
    }


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="torchvision:resnet50")
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = measure(options.network, options.candidates, options.repeats)
    record = {
        "command": f"python benchmarks/cost_model.py --network {options.network} "
        f"--candidates {options.candidates} --repeats {options.repeats}",
        "versions": {
            "convwright": convwright.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads_used": 1},
        "required_candidates_per_second": REQUIRED,
        **numbers,
    }
    print(json.dumps(record, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if numbers["candidates_per_second"]["macs_and_params"] >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
