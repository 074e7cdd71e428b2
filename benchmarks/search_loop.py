"""What a search costs beside reading and training: seconds per trial at 20 trials and at 2,000, and its resumption.

usage: python benchmarks/search_loop.py [--trials 2000] [--network zoo:resnet20] [--postgresql URL]

A method asks for one candidate after the other, every channel group of the network at a drawn width. Nothing is
trained: a candidate's "training" writes a small file and makes its accuracy up, and what that takes is taken off. So
what is left is the loop: asking, entering a trial, recording its evidence, telling the method, in the storage of a real
run directory. Then the directory is resumed, and every trial told again.

Medians of the first and the last 20 trials, by the clock and by the processor's time of this process, which other work
on the machine does not lengthen. Each storage is ``run.db`` in the directory, and with ``--postgresql`` a database.
Prints the rows and writes benchmarks/results/search_loop.json. Exit code 1 if a trial costs more than 0.1 s at the end,
or more than twice what it costs at the beginning, or the resumption more than 10 s.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import convwright as cw
from convwright.methods import Candidate, Evidence, Method
from convwright.runs import Study, search
from convwright.runs.directory.provenance import machine
from convwright.runs.directory.storage import check_url
from convwright.runs.time_budget import TimeBudget

RESULTS = Path(__file__).parent / "results" / "search_loop.json"
WINDOW = 20  # trials at the beginning and at the end that are compared
MOST, RESUMED, GROWTH = 0.1, 10.0, 2.0  # seconds per trial, seconds of the resumption, end against beginning


class Draws(Method):
    """Asks for widths drawn at random, one candidate after the other, each from the untouched network's weights."""

    def __init__(self, arch: cw.Architecture, count: int) -> None:
        self.empty, self.count, self.results = cw.Plan.empty(arch), count, list[Evidence]()
        self.groups = [group for group in arch.groups if not group.frozen]

    def ask(self) -> tuple[Candidate, ...]:
        """Return the next candidate."""
        number = len(self.results)
        if number >= self.count:
            return ()
        draw = random.Random(number)
        edits = [cw.Width(g.name, draw.randint(max(1, g.size // 2), g.size)) for g in self.groups]
        plan = self.empty.with_edits(*edits) if number else self.empty
        return (Candidate(plan, 0 if number else None, 1, number, role="candidate" if number else "base"),)

    def tell(self, evidence: Evidence) -> None:
        """Keep it."""
        self.results.append(evidence)

    def best(self) -> Evidence | None:
        """Return the most accurate."""
        return max(self.results, key=lambda e: e.score, default=None)


class Stub:
    """Makes evidence up in no time worth naming; keeps when each trial began and what it took itself."""

    def __init__(self, study: Study) -> None:
        self.study, self.begun, self.own = study, list[tuple[float, float]](), 0.0

    def __call__(self, number: int, candidate: Candidate, parents: Any) -> Evidence:
        """Return evidence; the weights are a file of a few bytes."""
        self.mark()
        start = time.perf_counter()
        file = self.study.weights(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
        score, probes = random.Random(-number).random(), {"qc": [0.5] * 40}
        found = Evidence(candidate, number, score, 0.01, {"macs": 1, "params": 1}, probes, seconds=1e-3)
        self.own += time.perf_counter() - start
        return found

    def mark(self) -> None:
        """Keep the time, without what the made-up trainings took, and the processor's."""
        self.begun.append((time.perf_counter() - self.own, time.process_time()))


def measured(arch: cw.Architecture, count: int, folder: Path, url: str | None) -> dict[str, Any]:
    """Search and resume in one storage; return seconds."""
    limit = TimeBudget.parse("100d")
    with Study(folder, {"model": arch.source}, storage=url) as study:
        stub = Stub(study)
        search(Draws(arch, count), study, stub, fits=limit.fits)
        stub.mark()
    both = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in itertools.pairwise(stub.begun)]
    each, busy = ([pair[place] for pair in both] for place in (0, 1))
    start, begun = time.perf_counter(), time.process_time()
    with Study(folder, {"model": arch.source}, storage=url, resume=True) as study:
        told = search(Draws(arch, count), study, Stub(study), fits=limit.fits)
    resumed, working = time.perf_counter() - start, time.process_time() - begun
    assert len(told) == count
    windows = {"first": each[:WINDOW], "last": each[-WINDOW:], "all": each}
    windows |= {"cpu_first": busy[:WINDOW], "cpu_last": busy[-WINDOW:]}
    row = {name: round(statistics.median(values), 5) for name, values in windows.items()}
    ends = {"whole": math.fsum(each), "resumed": resumed, "cpu_resumed": working}
    return {"trials": count, **row, **{name: round(value, 3) for name, value in ends.items()}}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--network", default="zoo:resnet20")
    parser.add_argument("--postgresql", help="URL of an empty database; its trials stay there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    arch = cw.read(options.network)
    storages = {"run.db": None} | ({"postgresql": options.postgresql} if options.postgresql else {})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for storage, url in storages.items():
            rows.append({"storage": storage, **measured(arch, options.trials, Path(name) / storage, url)})
            print(json.dumps(rows[-1]), flush=True)
    server = f" --postgresql {check_url(options.postgresql)}" if options.postgresql else ""
    packages = ("convwright", "torch", "optuna", "sqlalchemy", *(["psycopg"] if options.postgresql else []))
    record = {
        "command": f"python benchmarks/search_loop.py --trials {options.trials} --network {options.network}{server}",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "machine": machine(),
        "load": [round(number, 2) for number in os.getloadavg()],
        "window": WINDOW,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    good = [r["last"] <= min(MOST, GROWTH * r["first"]) and r["resumed"] <= RESUMED for r in rows]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
