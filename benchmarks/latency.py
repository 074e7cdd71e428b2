"""Measure latency: sums of operators against whole networks, and halved networks against what was estimated for them.

For each network: every distinct operator is measured once (an empty cache, so that building the table is timed), the
sum is held against the whole, all widths are halved, original and halved network are measured in turns, and the
estimate for the halved widths is held against what was measured. MACs, parameters and activation peak that the cost
model predicts for the halved network must equal those counted on it, or the benchmark fails.

Run ``python benchmarks/latency.py``; the numbers go to the terminal and to ``results/latency.json``. Other processes
disturb it: close them, or use ``--cool SECONDS`` to wait before each network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it

import torch

import convwright
from convwright.architecture import Architecture, read
from convwright.cost import (
    LatencyModel,
    LatencyTable,
    compare_latency,
    costs_of,
    layer_latencies,
    measure_latency,
    profile,
)
from convwright.cost.latency_table import processor
from convwright.edits import scale_widths, solve

RESULTS = Path(__file__).parent / "results" / "latency.json"
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny")
REQUIRED_SECONDS = 60  # for the table of a ResNet-50


def measure(name: str, ratio: float, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure one network and its scaled copy."""
    torch.manual_seed(0)
    arch = read(name)
    whole = measure_latency(arch.model, arch.example_input, seconds=seconds)
    table = LatencyTable(folder=folder)
    start = time.perf_counter()
    layers = layer_latencies(arch, table, whole)
    built_in, operators = time.perf_counter() - start, len(table.used)
    edits = scale_widths(arch, ratio)
    widths = widths_under(arch, edits)
    scaled = arch.apply(*edits, verify=False)
    start = time.perf_counter()
    estimate = LatencyModel.of(arch, table, whole).seconds(widths)
    estimated_in = time.perf_counter() - start
    pair = {"before": (arch.model, arch.example_input), "after": (scaled.model, scaled.example_input)}
    turns = compare_latency(pair, seconds=2 * seconds)
    before, after, share = turns.latencies["before"], turns.latencies["after"], turns.ratios["after"]
    known = LatencyModel.of(arch, table, before).seconds(widths)  # calibrated on the same turns
    return {
        "network": name,
        "layers": len(layers.layers),
        "operators": operators,
        "table_seconds": round(built_in, 2),
        "whole": interval(whole),
        "sum_ms": round(1e3 * layers.sum, 4),
        "sum_over_whole": round(layers.ratio, 4),
        "unmeasured": list(layers.unmeasured),
        "before": interval(before),
        "after": interval(after),
        "ratio": {"median": round(share.median, 4), "interval": [round(share.lower, 4), round(share.upper, 4)]},
        "estimate_ms": round(1e3 * estimate, 4),
        "estimate_seconds": round(estimated_in, 2),
        "estimate_in_turns_ms": round(1e3 * known, 4),
        "estimate_error": round(known / after.median - 1, 4),
        "counts": counts(arch, scaled, widths),
    }


def widths_under(arch: Architecture, edits: Any) -> dict[str, int]:
    """Return the sizes of all free groups under edits."""
    units = solve(arch, edits).units
    return {g.name: int(u) * g.step for g, u in zip(arch.groups, units, strict=True) if not g.frozen}


def counts(arch: Architecture, scaled: Architecture, widths: dict[str, int]) -> dict[str, Any]:
    """Hold the predicted costs against those of the scaled network, read anew.

    Raises:
        AssertionError: they differ.
    """
    predicted = {metric: int(cost) for metric, cost in arch.cost_model().costs(widths).items()}
    counted = costs_of(profile(read(scaled.model, scaled.example_input)))
    if predicted != counted:
        raise AssertionError(f"{arch.source}: predicted {predicted}, counted {counted}")
    return {"before": costs_of(profile(arch)), "predicted": predicted, "counted": counted}


def interval(found: Any) -> dict[str, Any]:
    """Write a latency in milliseconds."""
    ends = [round(1e3 * found.lower, 4), round(1e3 * found.upper, 4)]
    return {"median_ms": round(1e3 * found.median, 4), "interval_ms": ends, "repeats": found.repeats}


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--ratio", type=float, default=0.5, help="of all widths")
    parser.add_argument("--seconds", type=float, default=10.0, help="per whole network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cool", type=float, default=0.0, help="seconds to wait before each network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        time.sleep(options.cool)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(f"torchvision:{name}", options.ratio, Path(folder), options.seconds))
        print(json.dumps(rows[-1], indent=2), flush=True)
    record = {
        "command": f"python benchmarks/latency.py --ratio {options.ratio} --seconds {options.seconds:g} "
        f"--threads {options.threads}",
        "versions": {
            "convwright": convwright.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "threads_used": options.threads,
            "load_after": [round(load, 2) for load in os.getloadavg()],
        },
        "seed": 0,
        "ratio": options.ratio,
        "required_table_seconds": REQUIRED_SECONDS,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if all(row["table_seconds"] < REQUIRED_SECONDS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
