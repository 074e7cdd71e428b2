"""The support matrix: every kind of edit on classifiers, detectors, segmenters and backbones.

    python tools/support.py [--jobs N] [--only REGEX] [--resume] [--only-failed] [--edits KIND ...]

Each network runs in a process of its own, on one thread, with a time limit and a memory limit; so does
torch-pruning's stock call beside it. A row is written as soon as it is known. A cell that would be worse than in the
committed ``docs/support.json`` is not written, and the command ends with code 1, unless ``--accept-worse`` is given.
Nothing is downloaded: weights are random.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support_networks import LARGE, family_of, networks

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / "docs" / "support.json"
KINDS = ("shrink", "grow", "remove_block", "add_block", "kernel_up", "kernel_down", "replace", "resolution", "composed")
BEYOND = ("loss", "outputs", "onnx")  # of what is no classifier
VERSIONS = (
    "convwright", "torch", "torchvision", "timm", "segmentation-models-pytorch", "ultralytics", "onnxruntime",
    "torch-pruning",
)  # fmt: skip
RIVAL_LIMIT = 120  # processor seconds
PATIENCE = 5  # seconds by the clock per processor second, at most
RANKS = {"done": 3, "exact": 3, "inexact": 2, "not applicable": 1, "fail": 0}


# ------------------------------------------------------------------ in a process of its own


def task(pipe: Connection, name: str, kinds: list[str], memory: float, seconds: float) -> None:
    """Measure one network and tell what becomes known, as it becomes known."""
    _limit(memory, seconds)
    from support_edits import measure, one_line, read

    try:
        subject, facts = read(name)
    except Exception as error:  # whatever goes wrong is a result
        pipe.send({"unread": one_line(error)})
        return
    pipe.send({"facts": {**facts, "torch": version("torch"), "timm": version("timm")}})
    for kind, cell in measure(subject, kinds):
        pipe.send({"edit": kind, "cell": cell})


def rival_task(pipe: Connection, name: str, memory: float) -> None:
    """Run torch-pruning on one network and tell what came of it."""
    _limit(memory, RIVAL_LIMIT)
    import warnings

    from support_edits import rival

    warnings.simplefilter("ignore")
    pipe.send({"rival": rival(name)})


def _limit(gigabytes: float, seconds: float) -> None:
    """Limit this process's memory, and its processor time from now on: that is fair on a busy machine, too."""
    size, end = int(gigabytes * 2**30), int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))


# ------------------------------------------------------------------ watching it

# Children are forked from a process that has imported what they need: no network pays for the imports again.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["support_warm"]


def facts_of(target: Callable[..., None], *arguments: object, seconds: float) -> Iterator[Row]:
    """Yield what a process tells; at its end how it ended, if not well. One that sleeps is ended, too."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    deadline = time.monotonic() + PATIENCE * seconds
    late = True
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            yield ours.recv()
    except EOFError:
        late = False
    if late:
        child.kill()
    child.join()
    if late or child.exitcode:
        yield {"ended": "time limit" if late or child.exitcode == -signal.SIGXCPU else _ending(child.exitcode or 0)}


def _ending(code: int) -> str:
    """Name how a process died; with a limit on memory, an abort is an allocation that failed."""
    names = {-signal.SIGABRT: "out of memory (aborted)", -signal.SIGKILL: "out of memory (killed)"}
    return names.get(code, f"ended with code {code}")


def row_of(name: str, kinds: list[str], options: argparse.Namespace) -> Row:
    """Measure a network, whatever happens; edits that were not reached fail with the reason why."""
    row: Row = {"network": name}
    cells: dict[str, Row] = {}
    ended = "no answer"
    unread = ""
    for fact in facts_of(task, name, kinds, options.memory, options.limit, seconds=options.limit):
        row |= fact.get("facts", {})
        unread = fact.get("unread", unread)
        if "edit" in fact:
            cells[fact["edit"]] = fact["cell"]
        ended = fact.get("ended", ended)
    ended = f"cannot be read: {unread}" if unread else ended
    row["edits"] = {kind: cells.get(kind) or {"status": "fail", "reason": ended} for kind in kinds}
    return row


def rival_of(name: str, options: argparse.Namespace) -> Row:
    """Run torch-pruning on a network; a time limit is an answer."""
    answer: Row = {"ok": False, "reason": "no answer"}
    for fact in facts_of(rival_task, name, options.memory, seconds=RIVAL_LIMIT):
        answer = fact.get("rival", answer)
        if "ended" in fact:
            answer = {"ok": False, "reason": fact["ended"].replace("time limit", f"no answer within {RIVAL_LIMIT} s")}
    return answer


# ------------------------------------------------------------------ the file


def kinds_of(name: str) -> tuple[str, ...]:
    """Return the columns of a network: what is no classifier has some of its own."""
    return (*KINDS, *BEYOND) if family_of(name) else KINDS


def load(path: Path) -> dict[str, Row]:
    """Return a matrix file's rows by network; none if there is no file."""
    if not path.is_file():
        return {}
    return {row["network"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def save(rows: dict[str, Row], path: Path) -> None:
    """Write the matrix, one network per line; a half-written file is never left under its name."""
    from convwright.runs.directory.provenance import machine

    known = machine()
    head = {
        "command": "make zoo",
        "machine": {"processor": known["processor"], "cores": known["cpus"], "threads": 1, "system": known["system"]},
        "versions": {name: version(name) for name in VERSIONS},
        "seed": 0,
    }
    body = ",\n".join(json.dumps(rows[name]) for name in sorted(rows))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + body + "\n]}\n", encoding="utf-8")
    temporary.replace(path)


def merged(old: Row | None, new: Row, committed: Row | None, accept: bool) -> tuple[Row, list[str]]:
    """Return a row with its new cells, those left out that got worse, and a line for each of these."""
    row = {**(old or {}), **new}
    cells = {**(old or {}).get("edits", {}), **new["edits"]}
    worse = []
    for kind, cell in new["edits"].items():
        before = (committed or {}).get("edits", {}).get(kind)
        if before and RANKS[cell["status"]] < RANKS[before["status"]] and not accept:
            why = cell.get("reason", "")
            worse.append(f"{new['network']}, {kind}: was {before['status']}, would be {cell['status']} ({why})")
            cells[kind] = before
    row["edits"] = {kind: cells[kind] for kind in (*KINDS, *BEYOND) if kind in cells}
    return row, worse


def open_kinds(row: Row) -> list[str]:
    """Return the edits of a row that failed or are inexact by more than their nature."""
    return [
        kind
        for kind, cell in row["edits"].items()
        if cell["status"] == "fail" or (cell["status"] == "inexact" and kind != "replace")
    ]


# ------------------------------------------------------------------ the sweep


class Sweep:
    """All networks that are asked for, some at a time; rows are written as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows = load(options.out)
        self.committed = load(MATRIX)
        self.worse: list[str] = []
        self.lock = threading.Lock()

    def run(self) -> int:
        """Measure; return the exit code."""
        jobs = [(name, kinds) for name in networks() if (kinds := self._kinds(name)) is not None]
        small = [job for job in jobs if job[0] not in LARGE]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for done in [pool.submit(self._measure, *job) for job in small]:
                done.result()
        for job in jobs:
            if job not in small:
                self._measure(*job)
        for line in self.worse:
            print(f"got worse, not written (--accept-worse writes it): {line}")
        return int(bool(self.worse))

    def _kinds(self, name: str) -> list[str] | None:
        """Return which edits a network needs; none at all may still mean torch-pruning; ``None``: leave it."""
        options, row = self.options, self.rows.get(name)
        if not re.search(options.only, name):
            return None
        if options.only_failed:
            return (row and open_kinds(row)) or None
        if options.resume and row:
            missing = [kind for kind in self._asked(name) if kind not in row["edits"]]
            return missing if missing or ("torch_pruning" not in row and not options.no_rival) else None
        return self._asked(name)

    def _asked(self, name: str) -> list[str]:
        return [kind for kind in kinds_of(name) if kind in self.options.edits]

    def _measure(self, name: str, kinds: list[str]) -> None:
        started = time.perf_counter()
        old = self.rows.get(name)
        row = row_of(name, kinds, self.options) if kinds else {"network": name, "edits": {}}
        new_rival = not self.options.no_rival and not self.options.only_failed
        if new_rival:
            row["torch_pruning"] = rival_of(name, self.options)
        with self.lock:
            self.rows[name], worse = merged(old, row, self.committed.get(name), self.options.accept_worse)
            self.worse += worse
            save(self.rows, self.options.out)
            print(line_of(row, time.perf_counter() - started), flush=True)


def line_of(row: Row, seconds: float) -> str:
    """Return what the terminal shows of a network."""
    cells = {"done": "+", "exact": "=", "inexact": "~", "not applicable": "-", "fail": "F"}
    shown = " ".join(f"{kind}{cells[cell['status']]}" for kind, cell in row["edits"].items())
    rival = row.get("torch_pruning")
    said = "" if rival is None else f"  torch-pruning {'passes' if rival['ok'] else 'fails'}"
    reasons = [f"\n    {kind}: {c['reason']}" for kind, c in row["edits"].items() if c["status"] == "fail"]
    return f"{row['network']:44} {row.get('input', ''):10} {seconds:6.0f} s  {shown}{said}{''.join(reasons)}"


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time; the largest always run alone")
    parser.add_argument("--only", default="", metavar="REGEX", help="networks whose name matches")
    parser.add_argument("--edits", nargs="*", choices=KINDS + BEYOND, default=KINDS + BEYOND, help="these kinds only")
    parser.add_argument("--resume", action="store_true", help="leave out what the file already has")
    parser.add_argument("--only-failed", action="store_true", help="measure cells again that fail or are inexact")
    parser.add_argument("--accept-worse", action="store_true", help="write cells that are worse than committed ones")
    parser.add_argument("--no-rival", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--limit", type=float, default=600, help="processor seconds for one network")
    parser.add_argument("--memory", type=float, default=14, help="gigabytes for one network")
    parser.add_argument("--out", type=Path, default=MATRIX)
    options = parser.parse_args()
    tools, given = str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((given, tools))}
    PROCESSES.set_forkserver_preload(IMPORTED)
    return Sweep(options).run()


if __name__ == "__main__":
    raise SystemExit(main())
