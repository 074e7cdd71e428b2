"""Whether ``latency<=50%`` is met and used, by measurement: four networks, two runtimes, five searches.

    python benchmarks/latency_budgets.py [--networks NAME ...] [--targets NAME ...]

Weights are drawn, data are 32 made-up images, so a run is search and proof alone; what counts is the measured ratio of
the result to the untouched network. Methods are ``saliency`` with three seeds (of the weights, so that other channels
go) and ``uniform`` and ``auto`` with one. Rows join those in the file; a row that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it

import torch

from convwright import Recipe, optimize
from convwright.errors import BudgetError
from convwright.runs.directory.provenance import machine
from convwright.training import ArrayImages, ImageData

RESULTS = Path(__file__).parent / "results" / "latency_budgets.json"
NETWORKS = {
    "zoo:resnet20": (3, 32, 32),
    "torchvision:resnet18": (3, 96, 96),
    "torchvision:mobilenet_v2": (3, 96, 96),
    "timm:tf_efficientnet_lite0": (3, 96, 96),
}
TARGETS = ("onnxruntime", "openvino")
WAYS = (("saliency", 0), ("saliency", 1), ("saliency", 2), ("uniform", 0), ("auto", 0))


def images(shape: tuple[int, int, int], count: int, seed: int) -> ArrayImages:
    """Return noise with labels."""
    drawn = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return ArrayImages(
        drawn.contiguous(memory_format=torch.channels_last), torch.arange(count) % 4, (0.5,) * 3, (0.25,) * 3
    )


def row(name: str, target: str, method: str, seed: int) -> dict[str, Any]:
    """Run one search, and say what was measured."""
    shape, budget = NETWORKS[name], f"latency[{target}]<=50%"
    data = ImageData("noise", images(shape, 32, 1), images(shape, 16, 2), tuple("abcd"), lambda: images(shape, 16, 3))
    options = {"proposals": 2, "rounds": 1} if method == "auto" else {}
    told = {"network": name, "target": target, "method": method, "seed": seed}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        usual: dict[str, Any] = {
            "epochs": 0,
            "tune_epochs": 1,
            "baseline": False,
            "progress": False,
            "options": options,
        }
        try:
            data_of = optimize(
                name, data, budget, method, Path(folder) / "run", seed, Recipe(epochs=1, batch_size=16), **usual
            ).data
        except BudgetError as error:
            result = getattr(error, "result", None)
            if result is None:
                return {**told, "refused": str(error)}
            data_of = result.data
    met = data_of["budget_met"]["latency"]
    return {
        **told,
        "met": met["met"],
        "ratio": round(met["ratio"], 4),
        "interval": [round(each, 4) for each in met["ratio_interval"]],
        "used": round(met["ratio"] / 0.5, 4),
        "macs": round(data_of["result"]["counts"]["macs"]["torch"] / data_of["baseline"]["counts"]["macs"]["torch"], 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--ways", nargs="+", default=[f"{method}-{seed}" for method, seed in WAYS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    for name in options.networks:
        for target in options.targets:
            for method, seed in WAYS:
                known = {(r["network"], r["target"], r["method"], r["seed"]) for r in rows}
                if (name, target, method, seed) in known or f"{method}-{seed}" not in options.ways:
                    continue
                rows.append(row(name, target, method, seed))
                print(json.dumps(rows[-1]), flush=True)
                record = {
                    "command": "python benchmarks/latency_budgets.py",
                    "versions": {each: version(each) for each in ("torch", "onnxruntime", "openvino")},
                    "machine": machine() | {"capability": torch.backends.cpu.get_cpu_capability(), "threads": 1},
                    "rows": rows,
                }
                options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
