"""``convwright ablate``: what each training technique is worth on one network and one data set.

Layout of the folder::

    ablation.json       network, data and recipe: a folder holds one ablation, to which techniques can be added
    rows/NAME-SEED/     one training, see `convwright.experiments.train_row`
    result.json         all rows
    table.md            the same, for people
    picture.svg         gain against cost
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convwright.errors import DataError, RecipeError, RunError
from convwright.experiments.ablation_rows import CONTROL, AblationPlan, PlannedRow, folder_names, plan_ablation
from convwright.experiments.papers import Row
from convwright.experiments.results_table import ablated
from convwright.experiments.statistics import gain, spread_of
from convwright.experiments.train_row import Job, carried_out, check_at_least_one, finished, judge
from convwright.plots import Point, scatter
from convwright.runs.directory.files import digest, owned, read_json, write_json, write_text
from convwright.runs.directory.provenance import machine, versions
from convwright.runs.evaluate import precision_and_layout
from convwright.runs.executors import threads_of
from convwright.runs.executors.pool import in_turn_or_side_by_side
from convwright.runs.load import LoadedModel, Shape, load_model_and_data
from convwright.training import Recipe
from convwright.training.recipe.recipe import as_recipe

FORMAT = "convwright ablation"
NOTE_FORMAT = "convwright ablation asked"
Say = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class _Work:
    """One ablation: the plan, and a job for every row and seed."""

    plan: AblationPlan
    jobs: Mapping[str, tuple[Job, ...]]  # by row
    failures: dict[tuple[str, int], str]  # by row and seed, of this call

    def all(self) -> list[Job]:
        """Every job, each row once before any row twice; the control first."""
        by_seed = zip(*self.jobs.values(), strict=True)
        return [job for jobs in by_seed for job in jobs]


def ablate(
    model: str,
    data: str,
    techniques: str | Sequence[str],
    folder: Path | None = None,
    *,
    seeds: int = 3,
    all_pairs: bool = False,
    together: bool = False,
    recipe: Recipe | str | Path | None = None,
    epochs: int | None = None,
    test: bool = False,
    jobs: int = 1,
    threads: int | None = None,
    input_shape: str | Shape | None = None,
    data_dir: Path | None = None,
    weights: Path | None = None,
    say: Say = print,
    command: str = "",
) -> dict[str, Any]:
    """Train a control and one row per technique, and say what each gains on the validation images.

    All rows share network, optimizer, schedule and epochs; with the same seed, initial weights and order of images.
    Precision and layout left at `auto` are measured once, on the control.

    Args:
        model: As for `read`.
        data: As for `load_data`.
        techniques: ``"mixup,sam(rho=0.1)"``, or the same in parts.
        folder: Where trainings and result lie; what is finished there is kept. None: `default_folder`.
        seeds: Trainings per row, with the seeds 0, 1, ...
        all_pairs: Also every pair.
        together: Also all at once.
        recipe: As for `train`; techniques that are on in it are off in the control.
        epochs: Instead of the recipe's.
        test: Also judge every row on the test images, after all trainings are finished.
        jobs: Trainings side by side, each in a process of its own.
        threads: Threads of each training; None: torch's own number divided by `jobs`.
        input_shape: Images are resized to it.
        data_dir: As for `load_data`.
        weights: What every row starts from: a .safetensors file or a torch state dict; None: drawn from the seed.
        say: Called with lines for a person.
        command: How this was called; recorded.

    Returns:
        The content of ``result.json``.

    Raises:
        ConvwrightError: Whatever is wrong with network, data, recipe, techniques or folder; or the control, without
            which there is nothing to compare with, breaks down.
    """
    given = as_recipe(recipe).updated(**({} if epochs is None else {"epochs": epochs}))
    check_at_least_one(seeds=seeds, jobs=jobs, threads=threads)
    plan_ablation(given, techniques, all_pairs=all_pairs, together=together)  # before anything is read or written
    opened = load_model_and_data(model, data, input_shape=input_shape, data_dir=data_dir, recipe=given, weights=weights)
    for line in opened.remarks:
        say(line)
    given = opened.recipe
    if test and not opened.data.has_test:
        raise DataError(f"{data}: no test part; leave out --test")
    folder = folder or default_folder(model, data)
    threads = threads or max(1, torch.get_num_threads() // jobs)
    with owned(folder):
        asked = _asked(given, opened, model, data, weights)
        settled = _settled(given, opened, asked, folder, threads)
        plan = plan_ablation(settled, techniques, all_pairs=all_pairs, together=together)
        row_jobs = {}
        for row, name in zip(plan.rows, folder_names(plan.rows), strict=True):
            if row.recipe is not None:
                control = "" if row.name == CONTROL else CONTROL
                each = Row(row.name, model, data, row.recipe, tuple(range(seeds)), opened.options, control=control)
                common = (data_dir, threads, opened.data.shape, row.recipe.val_fraction, False, True, weights)
                folders = ((seed, folder / "rows" / f"{name}-{seed}") for seed in each.seeds)
                row_jobs[row.name] = tuple(Job(each, seed, own, *common) for seed, own in folders)
        work = _Work(plan, row_jobs, {})
        about = _about(model, opened, plan, settled, weights, command)
        for _ in _trained(work, jobs, say):
            _record(folder, _summary(about, work))
        if test:
            left = [job for job in work.all() if (found := finished(job)) is not None and found["test"] is None]
            for done, (job, _) in enumerate(in_turn_or_side_by_side(judge, left, jobs), start=1):
                say(f"{done}/{len(left)}  {job.row.name} seed {job.seed}: judged on the test images")
        content = _summary(about, work)
        _record(folder, content)
    return content


def default_folder(model: str, data: str) -> Path:
    """Return ``runs/ablate/MODEL-DATA`` with nothing in it that a file system minds."""
    return Path("runs") / "ablate" / re.sub(r"[^A-Za-z0-9.]+", "-", f"{model}-{data}").strip("-.").lower()


def _asked(given: Recipe, opened: LoadedModel, model: str, data: str, weights: Path | None) -> dict[str, Any]:
    """Return what all rows of a folder have in common, as plain values."""
    begun = None if weights is None else f"sha256:{digest(weights)[:12]}"
    recipe = given.model_dump(mode="json")
    return {"model": model, "data": data, "shape": list(opened.data.shape), "recipe": recipe, "weights": begun}


def _settled(given: Recipe, opened: LoadedModel, asked: Mapping[str, Any], folder: Path, threads: int) -> Recipe:
    """Return the recipe with precision and layout chosen, the same for all rows and all calls."""
    path = folder / "ablation.json"
    if path.is_file():
        found = read_json(path, NOTE_FORMAT)
        _check_same(found["asked"], asked, folder)
        return given.updated(**found["settings"])
    with threads_of(threads):
        settings = precision_and_layout(opened.arch, opened.data, given)
    write_json(path, {"format": NOTE_FORMAT, "asked": asked, "settings": settings})
    return given.updated(**settings)


def _check_same(found: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    stored = {**found, **{f"recipe field {key}": value for key, value in found["recipe"].items()}}
    wanted = {**asked, **{f"recipe field {key}": value for key, value in asked["recipe"].items()}}
    if Recipe(**found["recipe"]) == Recipe(**asked["recipe"]):  # fields may have been added since
        stored, wanted = dict(found, recipe=None), dict(asked, recipe=None)
    names = [name for name in wanted if name != "recipe" and stored.get(name) != wanted[name]]
    if names:
        name = names[0]
        raise RunError(
            f"{folder}: holds an ablation with {name}={stored.get(name)}, not {wanted[name]}; choose another --out"
        )


def _trained(work: _Work, jobs: int, say: Say) -> Iterator[Job]:
    everything = work.all()
    left = [job for job in everything if finished(job) is None]
    if len(left) < len(everything):
        say(f"{len(everything) - len(left)} of {len(everything)} trainings are finished already")
    for done, (job, outcome) in enumerate(carried_out(left, jobs), start=1):
        name, place = job.row.name, f"{done}/{len(left)}  {job.row.name} seed {job.seed}"
        if outcome.content is not None:
            accuracy, seconds = outcome.content["validation"]["accuracy"], outcome.content["seconds"]
            say(f"{place}: validation accuracy {accuracy:.2%} in {seconds:.0f} s")
        elif name == CONTROL:
            raise RecipeError(f"the control broke down, so nothing can be compared with it: {outcome.failure}")
        else:
            work.failures[name, job.seed] = outcome.failure
            say(f"{place}: failed: {outcome.failure}")
        yield job


# ------------------------------------------------------------------ the result


def _about(
    model: str, opened: LoadedModel, plan: AblationPlan, recipe: Recipe, weights: Path | None, command: str
) -> dict[str, Any]:
    notes = [] if weights is None else [f"Every row starts from {weights}."]
    if plan.switched_off:
        off = ", ".join(plan.switched_off)
        notes.append(f"On in the recipe, but off in the control and in the rows that do not name it: {off}.")
    return {
        "format": FORMAT,
        "version": 1,
        "model": model,
        "options": opened.options,
        "data": opened.data.name,
        "validation_images": len(opened.data.val) if opened.data.val is not None else 0,
        "recipe": (plan.rows[0].recipe or recipe).model_dump(mode="json", exclude={"seed"}),
        "command": command,
        "notes": notes,
        "versions": versions(),
        "machine": machine(),
    }


def _summary(about: Mapping[str, Any], work: _Work) -> dict[str, Any]:
    results = {name: [found for job in jobs if (found := finished(job))] for name, jobs in work.jobs.items()}
    control = results[CONTROL]
    rows = [_row(row, results.get(row.name, []), control, work.failures) for row in work.plan.rows]
    return {**about, "rows": rows}


def _row(
    row: PlannedRow,
    results: Sequence[Mapping[str, Any]],
    control: Sequence[Mapping[str, Any]],
    failures: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    failed = {seed: reason for (name, seed), reason in failures.items() if name == row.name}
    reason = row.reason or "; ".join(f"seed {seed}: {text}" for seed, text in failed.items())
    status = "skipped" if row.recipe is None else "failed" if failed else "finished" if results else "not trained yet"
    seconds, others = _epoch_seconds(results), _epoch_seconds(control)
    peaks = [found["peak_memory_bytes"] for found in results if found["peak_memory_bytes"] is not None]
    return {
        "name": row.name,
        "techniques": {technique.name: dict(technique.options) for technique in row.techniques},
        "status": status,
        "reason": reason,
        **_compared(results, control, "validation"),
        "test": _compared(results, control, "test") if results and results[0]["test"] else None,
        "params": results[0]["params"] if results else None,
        "macs": results[0]["macs"] if results else None,
        "epoch_seconds": seconds,
        "time_ratio": seconds / others if seconds and others and row.name != CONTROL else None,
        "peak_memory_bytes": max(peaks, default=None),
        "warnings": list(dict.fromkeys(text for found in results for text in found["warnings"])),
    }


def _compared(results: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    ours, theirs = (
        {found["seed"]: found[part]["accuracy"] for found in each if found[part]} for each in (results, control)
    )
    accuracies = list(ours.values())
    samples = results[0][part]["samples"] if accuracies else None
    found = gain(ours, theirs, samples) if results is not control else None
    return {
        "seeds": list(ours),
        "accuracies": accuracies,
        "samples": samples,
        **spread_of(accuracies),
        "gain": found.as_dict() if found is not None else None,
    }


def _epoch_seconds(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median over epochs and seeds; the first epoch of a training, which warms up, only if it is alone."""
    epochs = [record["seconds"] for found in results for record in (found["history"][1:] or found["history"])]
    return statistics.median(epochs) if epochs else None


def _record(folder: Path, content: Mapping[str, Any]) -> None:
    sheet = ablated(content)
    write_json(folder / "result.json", content)
    write_text(folder / "table.md", f"# {sheet.title}\n\n{sheet.markdown()}\n")
    points = [
        Point(row["name"], row["time_ratio"], 100 * row["gain"]["mean"], 100 * (row["gain"]["stderr"] or 0))
        for row in content["rows"]
        if row["gain"] is not None and row["time_ratio"] is not None
    ]
    if points:
        words = ("time of an epoch / the control's", "gain in validation accuracy, points")
        write_text(folder / "picture.svg", scatter([Point(CONTROL, 1.0, 0.0, 0.0), *points], sheet.title, *words))
