"""Candidates per hour side by side against one after the other: two processes, and two workers of Ray.

Each way carries out the same candidates (ResNet-20, trained for some steps on the embedded images), with one thread
each. Workers are started and have done one candidate before the clock runs. The ways are
timed in turns, several rounds; the median of the rounds' ratios counts, and all evidence must be equal.

Run ``python benchmarks/workers.py``; the numbers go to ``results/workers.json``. Exit code 1 if a way with two workers
is less than 1.7 times as fast, or finds out something else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

from convwright.edits import Plan
from convwright.methods import Candidate
from convwright.runs import Evaluator, Study
from convwright.runs.directory.files import save_weights
from convwright.runs.executors import Executor, InProcess
from convwright.runs.executors.ray import OnRay
from convwright.runs.executors.worker import Processes, Setup
from convwright.runs.load import load_model_and_data
from convwright.runs.loop import carried_out
from convwright.training import Recipe

RESULTS = Path(__file__).parent / "results" / "workers.json"
TARGET, WORKERS = 1.7, 2


def executors(evaluator: Evaluator, model: str, study: Study) -> dict[str, Executor]:
    """Return every way to work on candidates that is installed here."""
    initial = study.folder / "initial.safetensors"
    save_weights(evaluator.arch.model, initial)
    setup = Setup.of(evaluator, model, initial, 1)
    ways: dict[str, Executor] = {"one process": InProcess(evaluator, 1), "two processes": Processes(2, setup, study)}
    if importlib.util.find_spec("ray") is not None:
        ways["two Ray workers"] = OnRay("local", setup, study, study.folder / "run.json", _share(), 0)
    return ways


def _share() -> float:
    """Return the processors of one candidate such that a local Ray has room for two of them."""
    return max(1.0, (os.cpu_count() or 1) // WORKERS)


def timed(executor: Executor, study: Study, batch: list[Candidate], asked: dict[int, Candidate]) -> tuple[float, list]:
    """Carry a batch out; return the seconds and what was found out."""
    start = time.perf_counter()
    found = carried_out(batch, asked, study, executor, lambda text: None)
    return time.perf_counter() - start, [[e.score, e.costs["macs"], e.status] for e in found]


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all ways in turns."""
    opened = load_model_and_data(options.model, "fashion-mini")
    recipe = Recipe(batch_size=64, max_steps=options.steps, precision="fp32", memory_format="contiguous")
    empty = Plan.empty(opened.arch)
    seconds: dict[str, list[float]] = {}
    same = True
    with Study(folder / "run", {}) as study:
        evaluator = Evaluator(opened.arch, opened.data, recipe, study, progress=False)
        ways = executors(evaluator, options.model, study)
        asked: dict[int, Candidate] = {}
        try:
            for executor in ways.values():  # starts the workers, which read the network
                timed(executor, study, [Candidate(empty, None, 1, seed) for seed in range(WORKERS)], asked)
            for turn in range(options.rounds):
                batch = [Candidate(empty, None, 1, 100 * turn + n) for n in range(options.candidates)]
                results = {name: timed(executor, study, batch, asked) for name, executor in ways.items()}
                for name, (length, _) in results.items():
                    seconds.setdefault(name, []).append(length)
                same = same and all(found == results["one process"][1] for _, found in results.values())
        finally:
            for executor in ways.values():
                executor.close()
    return {"same_evidence": same, "rows": [row(name, seconds, options.candidates) for name in ways]}


def row(name: str, seconds: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Return candidates per hour of one way, and how much faster than one process it is."""
    ratios = [one / this for one, this in zip(seconds["one process"], seconds[name], strict=True)]
    return {
        "way": name,
        "seconds": [round(value, 2) for value in seconds[name]],
        "per_hour": round(3600 * count / statistics.median(seconds[name])),
        "speedup": round(statistics.median(ratios), 3),
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--model", default="zoo:resnet20")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    record = {
        "command": "python benchmarks/workers.py",
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in ("convwright", "torch", "numpy")},
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_candidate": 1,
            "system": platform.system(),
        },
        "load": [round(number, 2) for number in os.getloadavg()],
        "network": options.model,
        "candidates": options.candidates,
        "steps": options.steps,
        "requirement": {"speedup": TARGET},
        **found,
    }
    print(json.dumps(record, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    fast = all(each["speedup"] >= TARGET for each in found["rows"][1:])
    return 0 if fast and found["same_evidence"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
