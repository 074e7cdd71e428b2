"""Time the channel quality of a whole network, and the published procedure done in the straightforward way.

Both measure all convolutions of ``zoo:resnet34_cifar`` (stages of 64 to 512 channels), drawn at random with a signal
of low rank added to each kernel, so that there is something to find:

* ``ours``: ``channel_qualities``, corrected, input and output mode;
* ``ours, parity``: the same with ``parity=True``, which adds the kernel mode and SciPy's search for the variance;
* ``published``: NumPy and SciPy, one kernel after the other: the three unfoldings, each decomposed with its left and
  right vectors, and SciPy's bounded search on the whole objective.

They take turns, in one process and one thread. Compared are the least seconds of processor time, which other processes
disturb least; seconds on the clock are noted. The ranks of ``parity`` and ``published`` are compared, too: a value
at the threshold may be seen differently in single and in double precision.

Run ``python benchmarks/channel_quality.py``; the numbers go to ``results/channel_quality.json``. Exit code 1 if the
requirement (at most 1.5 s of processor time, and 8 times as fast as the published procedure) is not met.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import convwright as cw
from convwright.cost.latency_table import processor
from convwright.metrics.quality.channel_quality import ChannelQuality, channel_qualities, kernels

RESULTS = Path(__file__).parent / "results" / "channel_quality.json"
NETWORK = "resnet34_cifar"
LIMIT, FACTOR = 1.5, 8.0
MODES = ("input", "output", "kernel")
Array = npt.NDArray[np.floating]


def weights(seed: int) -> dict[str, Tensor]:
    """Return kernels with a signal of rank 1 to 8 in noise."""
    torch.manual_seed(seed)
    found = {}
    for i, (name, drawn) in enumerate(kernels(cw.zoo.create(NETWORK)).items()):
        rank, columns = 1 + i % 8, math.prod(drawn.shape[1:])
        signal = torch.randn(drawn.shape[0], rank) @ torch.randn(rank, columns)
        found[name] = drawn + 0.5 * drawn.std() * signal.reshape(drawn.shape)
    return found


# ------------------------------------------------------------------ the published procedure


def published(named: dict[str, Tensor]) -> dict[str, tuple[tuple[float, float, float], ...]]:
    """Return (rank, knowledge gain, condition) of the three modes of each kernel."""
    found = {}
    for name, weight in named.items():
        w = weight.numpy()
        out, into, height, width = w.shape
        taps = w.transpose(3, 2, 1, 0).reshape(width * height, into * out)
        found[name] = (
            measures(factorize(w.transpose(1, 0, 2, 3).reshape(into, -1)), into),
            measures(factorize(w.reshape(out, -1)), out),
            measures(np.sqrt(factorize(taps @ taps.T)), height * width),
        )
    return found


def measures(kept: Array, rows: int) -> tuple[float, float, float]:
    """Return rank, knowledge gain and condition of what was kept of a mode."""
    if not len(kept):
        return 0.0, 0.0, 0.0
    return len(kept) / rows, float(kept.sum() / (rows * kept[0])), float(kept[0] / kept[-1])


def factorize(matrix: Array) -> Array:
    """Decompose a matrix in full, find the variance and build what is kept with its vectors, as that code does."""
    rows, columns = matrix.shape
    alpha = rows / columns
    tau = 2.5129 * np.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    tail = int(min(np.ceil(rows / (1 + alpha)) - 1, rows))
    upper = np.sum(s**2) / (rows * columns)
    lower = max(s[tail] ** 2 / (columns * threshold), np.mean(s[tail:] ** 2) / columns)

    def energy(variance: float) -> float:
        x = s**2 / (columns * variance)
        above, below = x[x > threshold], x[x <= threshold]
        t = larger_root(above, alpha)
        terms = np.sum(below - np.log(below)) + np.sum(above - t) + np.sum(np.log((t + 1) / above))
        return float(terms + alpha * np.sum(np.log(t / alpha + 1)) + (rows - len(s)) * np.log(variance))

    variance = float(minimize_scalar(energy, bounds=(lower, upper), method="bounded").x)
    kept = int((s > np.sqrt(columns * variance * threshold)).sum())
    part = 1 - (rows + columns) * variance / s[:kept] ** 2
    d = s[:kept] / 2 * (part + np.sqrt(part**2 - 4 * rows * columns * variance**2 / s[:kept] ** 4))
    _ = u[:, :kept], np.diag(d), v[:kept].T  # what it returns
    return d


def larger_root(x: Array, alpha: float) -> Array:
    """Return tau of x."""
    return 0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))


# ------------------------------------------------------------------ measuring


def seconds(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return seconds on the clock, seconds of processor time, and the result."""
    clock, work = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - clock, time.process_time() - work, result


def agreement(
    found: dict[str, ChannelQuality], reference: dict[str, tuple[tuple[float, float, float], ...]]
) -> dict[str, int]:
    """Count the modes whose rank is the published one, and what is left."""
    pairs = [(getattr(found[name], mode).rank, reference[name][i][0]) for name in found for i, mode in enumerate(MODES)]
    same = sum(abs(one - other) < 1e-12 for one, other in pairs)
    return {"modes": len(pairs), "ranks_equal": same}


def measure(rounds: int, seed: int) -> dict[str, Any]:
    """Let the three take turns."""
    named = weights(seed)
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: channel_qualities(named),
        "ours, parity": lambda: channel_qualities(named, parity=True),
        "published": lambda: published(named),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    results: dict[str, Any] = {}
    seconds(contestants["ours"])  # libraries start up
    for _ in range(rounds):
        for name, call in contestants.items():
            clock, work, results[name] = seconds(call)
            times[name].append((clock, work))
            print(f"{name:14} {clock:7.2f} s, {work:7.2f} s of processor time", flush=True)
    rows = [
        {
            "what": name,
            "seconds": round(min(clock for clock, _ in taken), 3),
            "processor_seconds": round(min(work for _, work in taken), 3),
            "seconds_all": [round(clock, 3) for clock, _ in taken],
            "processor_seconds_all": [round(work, 3) for _, work in taken],
        }
        for name, taken in times.items()
    ]
    return {
        "network": f"zoo:{NETWORK}",
        "kernels": len(named),
        "rows": rows,
        "agreement": agreement(results["ours, parity"], results["published"]),
    }


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios and the verdict."""
    ours, _, other = found["rows"]
    ratio = other["processor_seconds"] / ours["processor_seconds"]
    return {
        "processor_seconds": ours["processor_seconds"],
        "times_as_fast": round(ratio, 1),
        "met": ours["processor_seconds"] <= LIMIT and ratio >= FACTOR,
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds, options.seed)
    summary = summarise(found)
    print(json.dumps(summary | found["agreement"], indent=2))
    arguments = ["--rounds", str(options.rounds)] + (["--seed", str(options.seed)] if options.seed else [])
    packages = ("convwright", "torch", "numpy", "scipy")
    record = {
        "command": " ".join(["python benchmarks/channel_quality.py", *arguments]),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads_used": 1, "system": platform.system()},
        "load": [round(number, 2) for number in os.getloadavg()],
        "requirement": {"processor_seconds": LIMIT, "times_as_fast": FACTOR},
        "summary": summary,
        **found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
