"""``convwright reproduce``: train the rows of an experiment and set them beside the paper's numbers.

Layout of the folder::

    rows/NAME-SEED/     one training, see `convwright.runs.rows`
    result.json         all rows, with what is finished of them
    table.md            the same, for people

A training is done once: a finished one with the same network, data and recipe is read, not repeated. So the
command can be interrupted at any moment and given again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convwright.errors import RecipeError, RunError, did_you_mean
from convwright.runs.experiment_tables import reproduced
from convwright.runs.experiments import EXPERIMENTS, SIZES, Experiment, Row, Size, experiment_named
from convwright.runs.files import owned, write_json, write_text
from convwright.runs.machine import machine, portable, versions
from convwright.runs.rows import Job, carried_out, finished

FORMAT = "convwright experiment"
Say = Callable[[str], object]


def reproduce(
    name: str,
    folder: Path | None = None,
    *,
    size: Size = "standard",
    data_dir: Path | None = None,
    jobs: int = 1,
    threads: int | None = None,
    only: Sequence[str] = (),
    seeds: int | None = None,
    say: Say = print,
    command: str = "",
) -> dict[str, Any]:
    """Train what is not yet trained of an experiment, and return the whole table.

    Args:
        name: The experiment.
        folder: Where trainings and result lie; what is finished there is kept. None: `default_folder`.
        size: See `Experiment`.
        data_dir: As for `load_data`.
        jobs: Trainings side by side, each in a process of its own.
        threads: Threads of each training; None: torch's own number divided by `jobs`.
        only: Names of rows; none: all.
        seeds: At most so many seeds per row; None: as many as the row has.
        say: Called with lines for a person.
        command: How this was called; recorded.

    Returns:
        The content of ``result.json``.

    Raises:
        ConvwrightError: Unknown experiment or row, data that cannot be read, a folder in use; or trainings that
            broke down, after all others are finished.
    """
    found = experiment_named(name)
    rows = _chosen(found, size, only)
    _check_counts(jobs=jobs, seeds=seeds, threads=threads)
    folder = folder or default_folder(name, size)
    threads = threads or max(1, torch.get_num_threads() // jobs)
    failures = []
    with owned(folder):
        work = [
            Job(row, seed, folder / "rows" / f"{row.name}-{seed}", data_dir, threads)
            for seed in _all_seeds(rows, seeds)
            for row in rows
            if seed in row.seeds[:seeds]
        ]
        left = [job for job in work if finished(job) is None]
        if len(left) < len(work):
            say(f"{len(work) - len(left)} of {len(work)} trainings are finished in {folder}")
        for done, (job, outcome) in enumerate(carried_out(left, jobs), start=1):
            place = f"{done}/{len(left)}  {job.row.name} seed {job.seed}"
            if outcome.content is None:
                failures.append(f"{job.row.name} seed {job.seed}: {outcome.failure}")
                say(f"{place}: failed: {outcome.failure}")
            else:
                say(f"{place}: {_said(outcome.content, job.row)}")
            _record(folder, summary(found, size, folder, command))
        content = summary(found, size, folder, command)
        _record(folder, content)
    if failures:
        raise RecipeError(f"{len(failures)} of {len(work)} trainings broke down, the others are kept; {failures[0]}")
    return content


def size_of(quick: bool, full: bool) -> Size:
    """Return the size that two switches mean.

    Raises:
        RunError: Both are on.
    """
    if quick and full:
        raise RunError("--quick and --full: give one of them")
    return "quick" if quick else "full" if full else "standard"


def default_folder(name: str, size: Size) -> Path:
    """Return where an experiment is recorded unless a folder is given."""
    return Path("runs") / "reproduce" / (name if size == "standard" else f"{name}-{size}")


def listed() -> list[dict[str, Any]]:
    """Return name, title, source and rows of every experiment, as plain values."""
    return [
        {
            "name": found.name,
            "title": found.title,
            "source": found.source,
            "rows": [row.name for row in found.rows("standard")],
            "trainings": {size: sum(len(row.seeds) for row in found.rows(size)) for size in SIZES},
        }
        for found in EXPERIMENTS.values()
    ]


def _chosen(found: Experiment, size: Size, only: Sequence[str]) -> tuple[Row, ...]:
    rows = found.rows(size)
    known = [row.name for row in rows]
    for name in only:
        if name not in known:
            hint = did_you_mean(name, known)
            raise RunError(f"{found.name} has no row {name!r}.{hint} Its rows are {', '.join(known)}")
    return tuple(row for row in rows if not only or row.name in only)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise RunError(f"{name}={count}: give at least 1")


def _all_seeds(rows: Sequence[Row], most: int | None) -> list[int]:
    """Return the seeds in the order of work: every row once before any row twice."""
    return sorted({seed for row in rows for seed in row.seeds[:most]})


def _said(content: Mapping[str, Any], row: Row) -> str:
    paper = f", paper {row.paper['accuracy']:.2%}" if "accuracy" in row.paper else ""
    return f"{content['test']['accuracy']:.2%}{paper}, in {content['seconds']:.0f} s"


def _record(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / "result.json", content)
    write_text(folder / "table.md", f"# {content['title']}\n\n{reproduced(content).markdown()}\n")


# ------------------------------------------------------------------ the table


def summary(found: Experiment, size: Size, folder: Path, command: str) -> dict[str, Any]:
    """Return every row of the experiment with what is finished of it in `folder`."""
    return {
        "format": FORMAT,
        "version": 1,
        "name": found.name,
        "title": found.title,
        "source": found.source,
        "size": size,
        "command": portable(command),
        "rows": [_summed_up(row, _results(row, folder)) for row in found.rows(size)],
        "versions": versions(),
        "machine": machine(),
    }


def _results(row: Row, folder: Path) -> list[dict[str, Any]]:
    jobs = (Job(row, seed, folder / "rows" / f"{row.name}-{seed}") for seed in row.seeds)
    return [content for content in map(finished, jobs) if content is not None]


def _summed_up(row: Row, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row with mean and standard deviation over its seeds; no result is left out."""
    accuracies = [content["test"]["accuracy"] for content in results]
    return {
        "name": row.name,
        "model": row.model,
        "options": dict(row.options),
        "data": row.data,
        "recipe": row.recipe.model_dump(mode="json", exclude={"seed"}),
        "note": row.note,
        "control": row.control,
        "paper": dict(row.paper),
        "target": row.target,
        "limit": row.limit,
        "params": results[0]["params"] if results else None,
        "macs": results[0]["macs"] if results else None,
        "seeds": [content["seed"] for content in results],
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies) if accuracies else None,
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "train_accuracies": [content["history"][-1]["train_acc"] for content in results],
        "seconds": [content["seconds"] for content in results],
        "processor_seconds": [content["processor_seconds"] for content in results],
        "settings": results[0]["settings"] if results else None,
        "machine": results[0]["machine"] if results else None,
    }
