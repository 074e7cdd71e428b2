"""Time conflicting bundles beside the published loop, and measure what the streamed count keeps in memory.

* ``time``: ``bundles`` on whole arrays, rows compared after hashing, against the published loop written in NumPy
  (for each bundle, compare one row with all rows and allocate the mask), the same loop without the float mask, and
  ``numpy.unique`` of the rows. Processor time in seconds, on one thread; all must give the same number of bundles.
* ``memory``: bytes that ``BundleCounter`` holds at the peak, beyond the batch, in two phases: counting and
  ``result``. One buffer holds a batch and is filled anew for each: it is "one batch's activations", made before
  and not counted. Of each phase the peak is what the counters keep in tensors when it begins, plus the highest
  running sum of torch's allocations and releases (its profiler), plus that of everything else, NumPy's arrays
  included (tracemalloc, in a run of its own). The pieces that are worked on are counted, too; as they do not grow
  with the samples, the bytes per sample are the growth of the peak from a fifth of the samples to all, and the rest
  is given apart, as ``fixed``.

Run ``python benchmarks/bundles.py``; the numbers go to the terminal and to ``results/bundles.json``. Exit code 1 if a
requirement is not met: 40 times as fast as the loop for 2,048 rows of 4,096 that are all different, and at most 32
bytes per sample and layer.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from convwright.cost.latency_table import processor
from convwright.metrics import BundleCounter, bundles

RESULTS = Path(__file__).parent / "results" / "bundles.json"
SETTINGS = {"learning_rate": 1e-3, "batch_size": 64, "amplitude": 1.0}
SPEEDUP, BYTES = 40, 32
NAMED = "2048 x 4096, all different"


def quantised(a: np.ndarray) -> np.ndarray:
    """Return the published float32 operations on an array."""
    return np.float32(1.0) - (a * np.float32(1e-3)) * np.float32(1 / 64)


def published_loop(a: np.ndarray) -> int:
    """Count bundles as the published code does: one row against all, a float mask for each bundle."""
    q = quantised(a)
    owner = np.zeros(len(q), dtype=np.float32)
    found = 0
    for i in range(len(q)):
        if owner[i] == 0:
            found += 1
            mask = np.where(q == q[i], np.float32(1), np.float32(0))
            owner[mask.min(axis=1) == 1] = found
    return found


def lean_loop(a: np.ndarray) -> int:
    """Count them by the same loop without the float mask."""
    q = quantised(a)
    owner = np.zeros(len(q), dtype=np.int64)
    found = 0
    for i in range(len(q)):
        if owner[i] == 0:
            found += 1
            owner[(q == q[i]).all(axis=1)] = found
    return found


def unique(a: np.ndarray) -> int:
    """Count them by sorting whole rows."""
    return len(np.unique(quantised(a), axis=0))


def ours(a: np.ndarray) -> int:
    """Count them by hash, rows compared."""
    return bundles(torch.from_numpy(a), np.arange(len(a)) % 10, **SETTINGS).count


def seconds(call: Callable[[], int], repeats: int = 1) -> tuple[float, int]:
    """Return the least seconds of processor time of several runs, and the result."""
    times, found = [], 0
    for _ in range(repeats):
        start = time.process_time()
        found = call()
        times.append(time.process_time() - start)
    return min(times), found


def timed(rows: int, columns: int, different: int, loop: bool) -> dict[str, Any]:
    """Time one array of ``rows`` of which ``different`` differ."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((different, columns)).astype(np.float32)[rng.permutation(rows) % different]
    words = "all different" if different == rows else f"{different} different"
    row: dict[str, Any] = {"array": f"{rows} x {columns}, {words}"}
    ways: list[tuple[str, Callable[[np.ndarray], int], int]] = [("bundles", ours, 5), ("unique", unique, 1)]
    if loop:
        ways += [("published_loop", published_loop, 1), ("lean_loop", lean_loop, 1)]
    counts = {}
    for name, way, repeats in ways:
        took, counts[name] = seconds(lambda way=way: way(a), repeats)  # type: ignore[misc]
        row[name] = round(took, 4)
    if set(counts.values()) != {different}:
        raise SystemExit(f"{row['array']}: the numbers of bundles differ: {counts}")
    if loop:
        row["speedup"] = round(row["published_loop"] / row["bundles"], 1)
        row["speedup_lean"] = round(row["lean_loop"] / row["bundles"], 1)
    print(json.dumps(row), flush=True)
    return row


# ------------------------------------------------------------------ memory


class Stream:
    """Batches of rows in one buffer; each pass gives the same rows."""

    def __init__(self, samples: int, columns: int, batch: int, different: int) -> None:
        self.samples, self.batch, self.different = samples, batch, different
        self.array = np.empty((batch, columns), dtype=np.float32)
        self.buffer = torch.from_numpy(self.array)
        self.labels = torch.arange(batch) % 10

    def __call__(self) -> Iterator[torch.Tensor]:
        """Yield the batches of a pass."""
        for start in range(0, self.samples, self.batch):
            numbers = np.arange(start, min(start + self.batch, self.samples)) % self.different
            self.array[: len(numbers)] = numbers[:, None]
            yield self.buffer[: len(numbers)]


def torch_peak(call: Callable[[], Any]) -> int:
    """Return the most bytes by which tensors exceeded, at a time during a call, what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [e for e in results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum([0, *sizes]).max())


def python_peak(call: Callable[[], Any]) -> int:
    """Return the same of Python's objects and NumPy's arrays."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def kept(counters: list[BundleCounter]) -> int:
    """Return the bytes that counters keep in tensors."""
    return sum(t.untyped_storage().nbytes() for c in counters for block in c._store.blocks for t in block)


def peaks(stream: Stream, layers: int, peak: Callable[[Callable[[], Any]], int]) -> dict[str, int]:
    """Return the peak of each phase, beyond the tensors kept when it began."""
    counters = [BundleCounter(**SETTINGS) for _ in range(layers)]  # type: ignore[arg-type]

    def counting() -> None:
        for batch in stream():
            for counter in counters:
                counter.add(batch, stream.labels[: len(batch)])

    def results() -> None:
        if {counter.result().count for counter in counters} != {stream.different}:
            raise SystemExit("the number of bundles is wrong")

    found = {phase.__name__: peak(phase) for phase in (counting, results)}
    return found | {"kept": kept(counters)}


def totals(samples: int, columns: int, batch: int, layers: int, different: int) -> dict[str, int]:
    """Return the peak of each phase of a stream, and what is kept, in bytes."""
    stream = Stream(samples, columns, batch, different)
    tensors, other = peaks(stream, layers, torch_peak), peaks(stream, layers, python_peak)
    held = tensors["kept"]
    return {
        "counting": tensors["counting"] + other["counting"],
        "result": held + tensors["results"] + other["results"],
        "kept": held,
    }


def measured(samples: int, columns: int, batch: int, layers: int, different: int | None) -> dict[str, Any]:
    """Measure one kind of stream at two lengths; ``different`` is None if all rows are."""
    peaks(Stream(3 * batch, columns, batch, batch), 1, python_peak)  # what is loaded and cached once, is now
    few = samples // 5
    short = totals(few, columns, batch, layers, different or few)
    whole = totals(samples, columns, batch, layers, different or samples)
    per = {phase: (whole[phase] - short[phase]) / (samples - few) / layers for phase in whole}
    row: dict[str, Any] = {
        "samples": samples, "columns": columns, "batch": batch, "layers": layers, "bundles": different or samples,
        "kept_per_sample": round(whole["kept"] / samples / layers, 2),
        "growth_per_sample": {phase: round(per[phase], 2) for phase in ("counting", "result")},
        "fixed": {phase: round(short[phase] - per[phase] * few * layers) for phase in ("counting", "result")},
        "peaks": whole,
        "peak_per_sample": round(max(whole.values()) / samples / layers, 2),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000, help="of the memory measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = ((2048, 4096, 2048, True), (2048, 4096, 32, True), (16384, 4096, 16384, False))
    times = [timed(*case) for case in cases]
    n = options.samples
    memory = [measured(n, 256, 256, layers, different) for layers, different in ((1, None), (1, 32), (1, 1), (4, None))]
    summary = {
        "speedup": next(row["speedup"] for row in times if row["array"] == NAMED),
        "kept_per_sample": max(row["kept_per_sample"] for row in memory),
        "growth_per_sample": max(max(row["growth_per_sample"].values()) for row in memory),
        "fixed": max(max(row["fixed"].values()) for row in memory),
        "peak_per_sample": max(row["peak_per_sample"] for row in memory),
    }
    summary["met"] = summary["speedup"] >= SPEEDUP and summary["growth_per_sample"] <= BYTES
    print(json.dumps(summary, indent=2))
    arguments = [a for a in sys.argv[1:] if not a.startswith("--out")]
    packages = ("convwright", "torch", "numpy")
    record = {
        "command": " ".join(["python benchmarks/bundles.py", *arguments]),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "machine": {
            "cpu": processor(), "cores": os.cpu_count(), "threads_used": 1, "system": platform.system(),
            "load_after": [round(x, 2) for x in os.getloadavg()],
        },
        "requirement": {"speedup": SPEEDUP, "bytes_per_sample_and_layer": BYTES},
        "summary": summary,
        "time": times,
        "memory": memory,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if summary["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
