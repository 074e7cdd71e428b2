"""Time the receptive fields of torchvision's convnets, and the plain way: gradients of one unit per layer.

Measured after reading, on one core, in seconds of processor time, which other processes disturb least:

* ``fields``: ``receptive_field(arch)``, all layers on the image and all stages on their own inputs, the median of
  several runs;
* ``oracle``: a forward pass with positive weights and one backward pass per layer with a kernel, from its middle
  unit, which gives the fields of those units on the image alone; for the networks named by ``--oracle``.

Run ``python benchmarks/receptive_field.py``; the table goes to the terminal, the numbers to
``results/receptive_field.json``. Exit code 1 if the requirement (ResNet-50 at most 0.05 s, none over 0.5 s) is not
met.
"""

from __future__ import annotations

import argparse
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

from convwright.architecture import Architecture, read
from convwright.cost.latency_table import processor
from convwright.metrics import receptive_field

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "metrics"))
from oracle import Oracle, Unit

RESULTS = Path(__file__).parent / "results" / "receptive_field.json"
NAMED, NAMED_LIMIT, LIMIT = "resnet50", 0.05, 0.5
TRANSFORMERS = ("vit", "swin", "maxvit")


def networks() -> list[str]:
    """Return torchvision's classification convnets."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(TRANSFORMERS)]


def build(name: str, side: int) -> Architecture:
    """Return a network that was read, without weights where it can be made so."""
    from torchvision.models import get_model

    side = max(side, 299) if name == "inception_v3" else side
    where = "cpu" if name.startswith("regnet") else "meta"  # RegNet computes widths with tensors
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device(where):
        return read(get_model(name, weights=None, **extra).eval(), torch.zeros(1, 3, side, side))


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Run a call and return the seconds of processor time it took and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def by_gradients(arch: Architecture) -> int:
    """Ask the oracle for the middle unit of every convolution and pool on a map; return how many were asked for."""
    layers = [layer for layer in arch.layers if layer.kind in ("conv", "pool") and max(layer.output_shape[2:]) > 1]
    oracle = Oracle(arch, until=layers[-1].name)
    for layer in layers:
        oracle.value(layer.name, Unit(0, tuple(side // 2 for side in layer.output_shape[2:])))
    return len(layers)


def measure(name: str, side: int, repeats: int, oracle: bool) -> dict[str, Any]:
    """Time one network."""
    arch = build(name, side)
    runs = [seconds(lambda: receptive_field(arch)) for _ in range(repeats)]
    found = runs[-1][1]
    row: dict[str, Any] = {
        "network": name,
        "layers": len(found.layers),
        "stages": len(found.stages),
        "skipped": len(found.skipped),
        "fields": round(statistics.median(took for took, _ in runs), 4),
    }
    if oracle:
        took, units = seconds(lambda: by_gradients(arch))
        row |= {"oracle": round(took, 3), "oracle_units": units}
    return row


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return median, maximum and the verdict."""
    times = {row["network"]: row["fields"] for row in rows}
    compared = [row["oracle"] / row["fields"] for row in rows if "oracle" in row]
    return {
        "networks": len(rows),
        "fields_median": statistics.median(times.values()),
        "fields_max": max(times.values()),
        **({"speedup_median": round(statistics.median(compared))} if compared else {}),
        "met": max(times.values()) <= LIMIT and times.get(NAMED, 0) <= NAMED_LIMIT,
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="default: all of torchvision's convnets")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--oracle", nargs="*", default=["mobilenet_v2", "resnet18"], help="compare with gradients")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'network':22} {'layers':>6} {'fields s':>9} {'oracle s':>9}")
    rows = []
    for name in options.networks or networks():
        rows.append(measure(name, options.side, options.repeats, name in options.oracle))
        row = rows[-1]
        print(f"{name:22} {row['layers']:6d} {row['fields']:9.3f} {row.get('oracle', '')!s:>9}", flush=True)
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    arguments = [a for a in sys.argv[1:] if not a.startswith("--out")]
    packages = ("convwright", "torch", "torchvision")
    record = {
        "command": " ".join(["python benchmarks/receptive_field.py", *arguments]),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads_used": 1, "system": platform.system()},
        "requirement": {f"fields_{NAMED}": NAMED_LIMIT, "fields_max": LIMIT},
        "summary": summary,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
