"""``convwright reproduce``: train the rows of an experiment and set them beside the paper's numbers.

Layout of the folder::

    rows/NAME-SEED/result.json      one finished training
    rows/NAME-SEED/checkpoint.pt    of an unfinished one: it continues there
    result.json                     all rows that are finished

A training is done once: a finished one with the same network, data and recipe is read, not repeated. So the
command can be interrupted at any moment and given again.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import torch

from convwright.architecture import create, read
from convwright.cost import profile
from convwright.errors import RunError
from convwright.runs.experiments import Experiment, Row, Size, experiment_named
from convwright.runs.files import read_json, save_weights, write_json
from convwright.runs.machine import machine, versions
from convwright.runs.training import judged
from convwright.training import ImageData, Recipe, load_data, train

FORMAT = "convwright experiment"
ROW_FORMAT = "convwright experiment row"
Say = Callable[[str], object]


@dataclass(frozen=True)
class Job:
    """One training of an experiment."""

    row: Row
    seed: int
    folder: Path
    data_dir: Path | None
    threads: int | None


def reproduce(
    name: str,
    folder: Path,
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
        folder: Where trainings and result lie; what is finished there is kept.
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
        ConvwrightError: Unknown experiment or row, data that cannot be read, a folder in use.
    """
    found = experiment_named(name)
    rows = _chosen(found, size, only)
    threads = threads or max(1, torch.get_num_threads() // jobs)
    with _owned(folder):
        work = [
            Job(row, seed, folder / "rows" / f"{row.name}-{seed}", data_dir, threads)
            for seed in _all_seeds(rows, seeds)
            for row in rows
            if seed in row.seeds[:seeds]
        ]
        for _ in _carried_out([job for job in work if finished(job) is None], jobs, say):
            write_json(folder / "result.json", summary(found, size, folder, command))
        content = summary(found, size, folder, command)
        write_json(folder / "result.json", content)
    return content


def _chosen(found: Experiment, size: Size, only: Sequence[str]) -> tuple[Row, ...]:
    rows = found.rows(size)
    known = [row.name for row in rows]
    for name in only:
        if name not in known:
            raise RunError(f"{found.name} has no row {name!r}; its rows are {', '.join(known)}")
    return tuple(row for row in rows if not only or row.name in only)


def _all_seeds(rows: Sequence[Row], most: int | None) -> list[int]:
    """Return the seeds in the order of work: every row once before any row twice."""
    return sorted({seed for row in rows for seed in row.seeds[:most]})


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder.

    Raises:
        RunError: It is a file, cannot be made, or is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; give a folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RunError(f"{folder}: another process is working in it; wait for it, or choose another --out") from error
    except OSError as error:
        raise RunError(f"{folder}: cannot be used ({error.strerror}); choose another folder with --out") from error


# ------------------------------------------------------------------ one training


def finished(job: Job) -> dict[str, Any] | None:
    """Return the result of a training that is done already, None if it is not (or was another one)."""
    path = job.folder / "result.json"
    if not path.is_file():
        return None
    content = read_json(path, ROW_FORMAT)
    stored, wanted = content["asked"], asked(job.row, job.seed)
    # As recipes, not as texts: a field that was added since then has its default in both.
    same = Recipe(**stored["recipe"]) == Recipe(**wanted["recipe"])
    return content if same and {**stored, "recipe": None} == {**wanted, "recipe": None} else None


def asked(row: Row, seed: int) -> dict[str, Any]:
    """Return what a training depends on, as plain values."""
    return {
        "model": row.model,
        "options": dict(row.options),
        "data": row.data,
        "recipe": row.recipe.updated(seed=seed).model_dump(mode="json"),
    }


def carry_out(job: Job) -> dict[str, Any]:
    """Train one row with one seed and record it."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    recipe = job.row.recipe.updated(seed=job.seed)
    data = _data(job.row.data, job.data_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model, _, _ = create(job.row.model, **job.row.options)
    start, processor = time.perf_counter(), time.process_time()
    resumed = (job.folder / "checkpoint.pt").is_file()
    trained = train(model, data, recipe, out=job.folder, resume=True, progress=False)
    content = {
        "format": ROW_FORMAT,
        "row": job.row.name,
        "seed": job.seed,
        "asked": asked(job.row, job.seed),
        **_costs(trained.model, data),
        "test": judged(trained.test),
        "history": [asdict(record) for record in trained.history],
        "settings": {
            "precision": trained.settings.precision,
            "memory_format": trained.settings.memory_format,
            "threads": trained.settings.threads,
            "device": trained.settings.device,
        },
        "seconds": trained.seconds,
        # Of the whole process, testing included; unknown where an earlier process did a part.
        "processor_seconds": None if resumed else time.process_time() - processor,
        "elapsed_seconds": time.perf_counter() - start,
        "versions": versions(),
        "machine": machine(),
    }
    save_weights(trained.model, job.folder / "model.safetensors")
    write_json(job.folder / "result.json", content)
    (job.folder / "checkpoint.pt").unlink(missing_ok=True)
    return content


@lru_cache(maxsize=2)
def _data(spec: str, data_dir: Path | None) -> ImageData:
    return load_data(spec, data_dir, val_fraction=0.0)


def _costs(model: torch.nn.Module, data: ImageData) -> dict[str, int]:
    costs = profile(read(model, (1, *data.shape)))
    return {"params": costs.params, "macs": costs.macs}


def _carried_out(work: Sequence[Job], jobs: int, say: Say) -> Iterator[dict[str, Any]]:
    """Yield the results as they come, from this process or from `jobs` processes."""
    results = map(carry_out, work) if jobs == 1 else _side_by_side(work, jobs)
    for done, content in enumerate(results, start=1):
        accuracy = content["test"]["accuracy"]
        say(
            f"{done}/{len(work)}  {content['row']} seed {content['seed']}: {accuracy:.2%} in {content['seconds']:.0f} s"
        )
        yield content


def _side_by_side(work: Sequence[Job], jobs: int) -> Iterator[dict[str, Any]]:
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(carry_out, job) for job in work]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
        "command": command,
        "rows": [_summed_up(row, _results(row, folder)) for row in found.rows(size)],
        "versions": versions(),
        "machine": machine(),
    }


def _results(row: Row, folder: Path) -> list[dict[str, Any]]:
    jobs = (Job(row, seed, folder / "rows" / f"{row.name}-{seed}", None, None) for seed in row.seeds)
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
