"""Time the channel analysis, against torch-pruning's dependency graph on the same networks.

Measured, on one core, for torchvision's classification convnets at 224 px (299 for Inception v3):

* ``labels``: ``analyse(capture)``, i.e. labels followed through the graph and channel groups built, after
  ``torch.export``; the median of three runs;
* ``export``: the capture before it, once;
* ``torch_pruning``: ``DependencyGraph().build_dependency`` and ``get_all_groups``, once, ended after a time
  limit; its own trace is part of ``build_dependency``.

Run ``python benchmarks/labels.py``; the table goes to the terminal, the numbers to ``results/labels.json``.
Exit code 1 if the requirement (median at most 0.2 s, none over 1.5 s) is not met.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
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

from convwright.architecture.capture.capture import capture
from convwright.architecture.channels import analyse

RESULTS = Path(__file__).parent / "results" / "labels.json"
MEDIAN_LIMIT, WORST_LIMIT = 0.2, 1.5
TRANSFORMERS = ("vit", "swin", "maxvit")


class OutOfTimeError(Exception):
    """The time limit of one network passed."""


def networks() -> list[str]:
    """Return torchvision's classification convnets."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(TRANSFORMERS)]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network, on the meta device where it can be made there, and its input."""
    from torchvision.models import get_model

    side = 299 if name == "inception_v3" else 224
    where = "cpu" if name.startswith("regnet") else "meta"  # RegNet computes widths with tensors
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device(where):
        model = get_model(name, weights=None, **extra).eval()
        return model, torch.zeros(1, 3, side, side)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Run a call and return the seconds it took and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure_labels(name: str, repeats: int) -> dict[str, Any]:
    """Export a network and time its channel analysis."""
    model, example = build(name)
    export, captured = seconds(lambda: capture(model, example))
    runs = [seconds(lambda: analyse(captured)) for _ in range(repeats)]
    groups = runs[-1][1].groups
    return {
        "export": round(export, 4),
        "labels": round(statistics.median(t for t, _ in runs), 4),
        "groups": len(groups),
        "free_groups": sum(not group.frozen for group in groups),
    }


def measure_torch_pruning(name: str, limit: int) -> dict[str, Any]:
    """Time torch-pruning's graph and groups; ``None`` with the reason where it fails."""
    import torch_pruning

    model, _ = build(name)
    model = model.to_empty(device="cpu") if next(model.parameters()).is_meta else model
    example = torch.zeros(1, 3, *(2 * [299 if name == "inception_v3" else 224]))
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]

    def run() -> int:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
        return sum(1 for _ in graph.get_all_groups(ignored_layers=classifier))

    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(limit)
    try:
        took, groups = seconds(run)
    except OutOfTimeError:
        return {"torch_pruning": None, "torch_pruning_note": f"stopped after {limit} s"}
    except Exception as error:  # a rival's failure is a result, not ours to mend
        return {"torch_pruning": None, "torch_pruning_note": f"{type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)
    return {"torch_pruning": round(took, 4), "torch_pruning_groups": groups}


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians, maxima and the verdict."""
    ours = [row["labels"] for row in rows]
    both = [row for row in rows if row.get("torch_pruning") is not None]
    summary: dict[str, Any] = {
        "networks": len(rows),
        "export_median": statistics.median(row["export"] for row in rows),
        "labels_median": statistics.median(ours),
        "labels_max": max(ours),
        "met": statistics.median(ours) <= MEDIAN_LIMIT and max(ours) <= WORST_LIMIT,
    }
    if both:
        theirs = [row["torch_pruning"] for row in both]
        summary |= {
            "torch_pruning_done": len(both),
            "torch_pruning_median": statistics.median(theirs),
            "torch_pruning_max": max(theirs),
            "speedup_median": round(statistics.median(row["torch_pruning"] / row["labels"] for row in both), 1),
        }
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
    }


def versions() -> dict[str, str]:
    """Return the versions of what took part."""
    packages = ("convwright", "torch", "torchvision", "torch-pruning", "numpy", "scipy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def table_line(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    rival = row.get("torch_pruning")
    said = f"{rival:9.3f}" if rival is not None else row.get("torch_pruning_note", "        -")[:40]
    return f"{row['network']:22} {row['export']:8.2f} {row['labels']:8.3f} {row['groups']:7d} {said}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="default: all of torchvision's convnets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=60, help="seconds for torch-pruning, each")
    parser.add_argument("--no-rival", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'network':22} {'export s':>8} {'labels s':>8} {'groups':>7} torch-pruning s")
    rows = []
    for name in options.networks or networks():
        row = {"network": name, **measure_labels(name, options.repeats)}
        if not options.no_rival:
            row |= measure_torch_pruning(name, options.limit)
        rows.append(row)
        print(table_line(row), flush=True)
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = [a for a in sys.argv[1:] if not a.startswith("--out")]
    record = {
        "command": " ".join(["python benchmarks/labels.py", *arguments]),
        "versions": versions(),
        "machine": machine(),
        "requirement": {"labels_median": MEDIAN_LIMIT, "labels_max": WORST_LIMIT},
        "summary": summary,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
