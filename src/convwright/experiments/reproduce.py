"""``convwright reproduce``: train or count the rows of an experiment and set them beside the paper's numbers.

Layout of the folder::

    rows/NAME-SEED/     one training, see `convwright.experiments.train_row`
    rows/NAME/          a row that is only counted
    searches/NAME/      a search that decides the network of rows, see `convwright.experiments.designs.search_design`
    result.json         all rows, with what is finished of them, and what follows from them
    table.md            the same, for people
    NAME.svg            pictures, where the experiment draws some

A training is done once: a finished one with the same network, data and recipe is read, not repeated. So the
command can be interrupted at any moment and given again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from convwright.errors import ConvwrightError, RecipeError, RunError, did_you_mean, look_up
from convwright.experiments.papers import EXPERIMENTS, SIZES, Experiment, Row, Size
from convwright.experiments.results_table import counts_beside, reproduced
from convwright.experiments.statistics import spread_of
from convwright.experiments.train_row import Job, carried_out, check_at_least_one, finished
from convwright.runs.directory.files import owned, write_json, write_text
from convwright.runs.directory.provenance import machine, portable, versions

FORMAT = "convwright experiment"
Say = Callable[[str], object]


def reproduce(
    name: str,
    folder: Path | None = None,
    *,
    size: Size = "standard",
    data: str | None = None,
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
        data: Where rows on images of a folder read them, ``folder:PATH``; None: from the folder that the row names.
        data_dir: As for `load_data`.
        jobs: Trainings side by side, each in a process of its own.
        threads: Threads of each training; None: torch's own number divided by `jobs`.
        only: Names of rows, or patterns such as ``resnet50-*``; none: all.
        seeds: At most so many seeds per row; None: as many as the row has.
        say: Called with lines for a person.
        command: How this was called; recorded.

    Returns:
        The content of ``result.json``.

    Raises:
        ConvwrightError: Unknown experiment or row, data that cannot be read, a folder in use; or trainings that
            broke down, after all others are finished.
    """
    found = look_up(name, EXPERIMENTS, "experiment", ConvwrightError)
    rows = _chosen(found, size, only)
    check_at_least_one(jobs=jobs, seeds=seeds, threads=threads)
    folder = folder or default_folder(name, size)
    threads = threads or max(1, torch.get_num_threads() // jobs)
    failures = []
    with owned(folder):
        work = _work(rows, seeds, folder, data_dir, threads, data or "")
        left = [job for job in work if finished(job) is None]
        if len(left) < len(work):
            say(f"{len(work) - len(left)} of {len(work)} {_called(rows)} are finished in {folder}")
        for done, (job, outcome) in enumerate(carried_out(left, jobs), start=1):
            named = job.row.name if job.row.recipe is None else f"{job.row.name} seed {job.seed}"
            place = f"{done}/{len(left)}  {named}"
            if outcome.content is None:
                failures.append(f"{named}: {outcome.failure}")
                say(f"{place}: failed: {outcome.failure}")
            else:
                say(f"{place}: {_said(outcome.content, job.row)}")
            _record(folder, found, summary(found, size, folder, command))
        content = _record(folder, found, summary(found, size, folder, command))
    if failures:
        raise RecipeError(
            f"{len(failures)} of {len(work)} {_called(rows)} broke down, the others are kept; {failures[0]}"
        )
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
            "trainings": {size: sum(row.trainings for row in found.rows(size)) for size in SIZES},
        }
        for found in EXPERIMENTS.values()
    ]


def _chosen(found: Experiment, size: Size, only: Sequence[str]) -> tuple[Row, ...]:
    rows = found.rows(size)
    known = [row.name for row in rows]
    for name in only:
        if not any(fnmatchcase(row, name) for row in known):
            hint = did_you_mean(name, known)
            raise RunError(f"{found.name} has no row {name!r}.{hint} Its rows are {', '.join(known)}")
    return tuple(row for row in rows if not only or any(fnmatchcase(row.name, name) for name in only))


def _work(
    rows: Sequence[Row], seeds: int | None, folder: Path, data_dir: Path | None, threads: int | None, source: str
) -> list[Job]:
    """Return what there is to do in its order: counts first, then every row once before any row twice."""
    trained = [row for row in rows if row.recipe is not None]
    pairs = [(row, 0) for row in rows if row.recipe is None]
    every = sorted({seed for row in trained for seed in row.seeds[:seeds]})
    pairs += [(row, seed) for seed in every for row in trained if seed in row.seeds[:seeds]]
    jobs = [Job(row, seed, _folder_of(row, seed, folder), data_dir, threads) for row, seed in pairs]
    return [replace(job, source=source) if job.row.data.startswith("folder:") else job for job in jobs]


def _folder_of(row: Row, seed: int, folder: Path) -> Path:
    return folder / "rows" / (row.name if row.recipe is None else f"{row.name}-{seed}")


def _called(rows: Sequence[Row]) -> str:
    counted = [row.recipe is None for row in rows]
    return "counts" if all(counted) else "counts and trainings" if any(counted) else "trainings"


def _said(content: Mapping[str, Any], row: Row) -> str:
    if row.recipe is None:
        told = counts_beside(content, row.paper)
        return f"{content['params']:,} parameters, {content['macs']:,} MACs{f'; {told}' if told else ''}"
    paper = f", paper {row.paper['accuracy']:.2%}" if "accuracy" in row.paper else ""
    return f"{content['test']['accuracy']:.2%}{paper}, in {content['seconds']:.0f} s"


def _record(folder: Path, found: Experiment, content: dict[str, Any]) -> dict[str, Any]:
    """Write the table and what follows from it; return the content with that."""
    if found.conclude is not None:
        concluded = found.conclude(content)
        tables = [table.as_dict() for table in concluded.tables]
        content = {**content, "conclusion": {"values": dict(concluded.values), "tables": tables}}
        if concluded.complete:
            content["conclusion"]["complete"] = True
        for name, text in concluded.pictures.items():
            write_text(folder / f"{name}.svg", text)
    write_json(folder / "result.json", content)
    write_text(folder / "table.md", f"# {content['title']}\n\n{reproduced(content).markdown()}\n")
    return content


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
        "rows": [_summed_up(row, folder) for row in found.rows(size)],
        "versions": versions(),
        "machine": machine(),
    }


def _summed_up(row: Row, folder: Path) -> dict[str, Any]:
    """Return a row with mean and standard deviation over its seeds; no result is left out."""
    jobs = (Job(row, seed, _folder_of(row, seed, folder)) for seed in (row.seeds if row.recipe is not None else (0,)))
    results = [content for content in map(finished, jobs) if content is not None]
    trained = results if row.recipe is not None else ()
    accuracies = [content["test"]["accuracy"] for content in trained]
    first: Mapping[str, Any] = results[0] if results else {}
    return {
        "name": row.name,
        "model": row.model,
        "options": dict(row.options),
        "data": row.data,
        "recipe": row.recipe.model_dump(mode="json", exclude={"seed"}) if row.recipe is not None else None,
        "note": row.note,
        "control": row.control,
        "paper": dict(row.paper),
        "target": row.target,
        "limit": row.limit,
        # Older results have no facts.
        **{name: first.get(name) for name in ("params", "macs", "form", "units", "same_as", "facts")},
        "judgement": first.get("judgement", 1) if first else None,
        **_of_searches(row, results),
        "seeds": [content["seed"] for content in trained],
        "accuracies": accuracies,
        "validations": [(content["validation"] or {}).get("accuracy") for content in trained],
        **spread_of(accuracies),
        "train_accuracies": [content["history"][-1]["train_acc"] for content in trained],
        "seconds": [content["seconds"] for content in trained],
        "processor_seconds": [content["processor_seconds"] for content in trained],
        "settings": first.get("settings"),
        "machine": first.get("machine"),
        "commit": first.get("versions", {}).get("commit"),
    }


def _of_searches(row: Row, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what only some rows have: the searches that decided the network, and the quality of trained kernels."""
    content: dict[str, Any] = {}
    if row.design and results:
        content["searches"] = results[0].get("searches", [])
    if any(getattr(design, "seeded", False) for design in row.design):  # another search for each seed
        content["histories"] = [[each["history"] for each in result.get("searches", ())] for result in results]
    if row.quality:
        content["qualities"] = [result.get("quality") for result in results]
        content["train_losses"] = [result["history"][-1]["train_loss"] for result in results]
    if row.study is not None:
        content["studies"] = [result.get("study") for result in results]
    return content
