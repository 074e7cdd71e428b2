"""Estimated against measured latency: 50 random designs of four networks, on eager PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/latency.py [--networks NAME ...] [--targets NAME ...] [--designs 50] [--seconds 1]

For each network and runtime a surface is fitted (an empty cache, so that this is timed), then designs are drawn that
the fit has not seen: multiples of 16, 8 or 1, alike or mixed, from a fifth of the widths on. Each is built and measured
in turns with the untouched network, and the ratio of both is held against the estimated one. The noise floor is the
same for the untouched network against itself. Other processes disturb it: close them. Rows join those in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it

import numpy as np
import torch

from convwright.architecture import Architecture, read
from convwright.cost import LatencyModel, compare_latency, measure_latency
from convwright.cost.latency_designs import drawn, surface_of
from convwright.cost.latency_table import processor
from convwright.cost.runtimes import Target
from convwright.edits import Width

RESULTS = Path(__file__).parent / "results" / "latency.json"
NETWORKS = {
    "zoo:resnet20": "1x3x32x32",
    "torchvision:resnet18": "1x3x96x96",
    "torchvision:mobilenet_v2": "1x3x96x96",
    "timm:tf_efficientnet_lite0": "1x3x96x96",
}
TARGETS = ("eager", "onnxruntime", "openvino")


def built(arch: Architecture, widths: Any) -> Architecture:
    """Return the network with other widths."""
    changed = [Width(name, size) for name, size in widths.items() if arch.channels.group(name).size != size]
    return arch.apply(*changed, verify=False)


def row(name: str, target: str, designs: int, seconds: float) -> dict[str, Any]:
    """Fit one network's surface on a runtime, and try it."""
    torch.manual_seed(0)
    arch = read(name, NETWORKS[name])
    whole = measure_latency(arch.model, arch.example_input, backend=target, seconds=seconds)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        surface = surface_of(arch, Target.of(target), lambda widths: built(arch, widths), Path(folder))
    taken = time.perf_counter() - start
    assert surface is not None
    model = LatencyModel.of(arch, whole=whole, surface=surface)
    own = (arch.model, arch.example_input)
    pairs, floor = [], []
    for widths in drawn(arch, designs, seed=1):
        other = built(arch, widths)
        both = {"before": own, "after": (other.model, other.example_input), "again": own}
        found = compare_latency(both, backend=target, seconds=seconds)
        pairs.append((model.seconds(widths) / whole.median, found.ratios["after"].median))
        floor.append(abs(found.ratios["again"].median - 1))
    errors = np.abs([estimated / measured - 1 for estimated, measured in pairs])
    return {
        "network": name,
        "input": NETWORKS[name],
        "target": target,
        "whole_ms": round(1e3 * whole.median, 4),
        "fitted_in_s": round(taken, 1),
        "step": surface.step,
        "block": surface.block,
        "designs": len(pairs),
        "median_error": round(float(np.median(errors)), 4),
        "error_95": round(float(np.quantile(errors, 0.95)), 4),
        "floor_median": round(float(np.median(floor)), 4),
        "floor_95": round(float(np.quantile(floor, 0.95)), 4),
        "pairs": [[round(a, 4), round(b, 4)] for a, b in pairs],
    }


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--designs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1.0, help="per design")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    for name in options.networks:
        for target in options.targets:
            found = row(name, target, options.designs, options.seconds)
            print(json.dumps({k: v for k, v in found.items() if k != "pairs"}), flush=True)
            rows = [r for r in rows if (r["network"], r["target"]) != (name, target)] + [found]
            record = {
                "command": f"python benchmarks/latency.py --designs {options.designs} --seconds {options.seconds:g}",
                "versions": {each: version(each) for each in ("torch", "onnxruntime", "openvino")},
                "machine": {"cpu": processor(), "capability": torch.backends.cpu.get_cpu_capability(), "threads": 1}
                | {"python": platform.python_version(), "cores": os.cpu_count()},
                "seed": 1,
                "rows": rows,
            }
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
