"""What a measurement of all blocks costs, beside the forward passes that it cannot do without.

Processor time, for the machine may be shared: the sample is passed through the bare network, and through the network
while bundles are counted, in turns; the ratio of the medians is what counts.

    python benchmarks/conflict_probe.py --out benchmarks/results/conflict_probe.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import convwright as cw
from convwright.training.probes.bundle_reading import find_points, read_bundles


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:resnet56")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    content = {
        "command": "python benchmarks/conflict_probe.py",
        "model": options.model,
        "samples": options.samples,
        "batch_size": options.batch_size,
        "cases": [measured(options, name) for name in ("as drawn", "one block dead")],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps(content, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=2) + "\n")


def measured(options: argparse.Namespace, case: str) -> dict[str, object]:
    """Measure one case: a healthy network, and one with a branch that gives nothing."""
    arch = cw.read(options.model)
    model = arch.model.eval()
    images = torch.randn(options.samples, *arch.example_input.shape[1:])
    if case == "one block dead":
        last = model.get_submodule(find_points(arch).points[20].tap.module)
        torch.nn.init.zeros_(last.weight)
    labels = torch.arange(options.samples) % 10
    points = find_points(arch)

    def bare() -> None:
        with torch.no_grad():
            for part in torch.split(images, options.batch_size):
                model(part)

    def probed() -> None:
        read_bundles(model, points, images, labels, learning_rate=0.1, batch_size=options.batch_size)

    bare()
    probed()
    turns = [(timed(bare), timed(probed)) for _ in range(options.turns)]
    one, other = (statistics.median(times) for times in zip(*turns, strict=True))
    reading = read_bundles(model, points, images, labels, learning_rate=0.1, batch_size=options.batch_size)
    return {
        "case": case,
        "points": len(points.points),
        "conflicting": sum(found.conflicting for found in reading.points),
        "passes": reading.passes,
        "bare_seconds": one,
        "probed_seconds": other,
        "ratio": other / one,
    }


def timed(run: Callable[[], None]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
