"""Rows of a table, each trained once per seed, or counted: what `reproduce` and `ablate` share.

Layout of one training's folder::

    asked.json      what is trained here
    checkpoint.pt   of an unfinished training: it continues there
    result.json     of a finished one: it is read, not repeated
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from convwright.architecture import read
from convwright.architecture.weights import read_checkpoint, take
from convwright.cost import count_by_torch, profile
from convwright.errors import BudgetError, EditError, ReadError, RecipeError, RecipeWarning, RunError, brief
from convwright.experiments.designs.design import (
    SEARCH_FORMAT,
    DesignContext,
    NetworkSpec,
    depths_of,
    form_of,
    made,
    opened,
    plain,
)
from convwright.experiments.features import facts, quality_facts
from convwright.experiments.papers import Row
from convwright.runs.directory.files import digest, load_weights, read_json, save_weights, write_json
from convwright.runs.directory.provenance import JUDGEMENT, machine, versions
from convwright.runs.executors.pool import in_turn_or_side_by_side
from convwright.runs.load import scores
from convwright.runs.train import judged
from convwright.training import ImageData, Recipe, TrainResult, load_data, train
from convwright.training.data.folders import Resize
from convwright.training.data.resized import resized_data

ROW_FORMAT = "convwright experiment row"
ASKED_FORMAT = "convwright experiment asked"
_MOST = 1024  # trainings per row, or side by side, or threads
_OWN_FAILURES = (RecipeError, EditError, ReadError, BudgetError)  # of one row; whatever else is wrong is wrong for all


@dataclass(frozen=True)
class Job:
    """One training, or one count.

    Attributes:
        row: What to train; without a recipe it is counted.
        seed: Of weights and training.
        folder: Where it is recorded.
        data_dir: As for `load_data`.
        threads: Threads of torch; None: as they are.
        input_shape: Images are resized to it; None: as they are.
        val_fraction: Share of the training images that is held out.
        test: Whether the result is judged on the test part as soon as it is trained.
        keep: Whether the checkpoint stays when the training is finished, so that `judge` can follow.
        weights: What the network starts from; None: weights drawn from the seed.
        teacher: Weights of the row's network without edits, for a recipe that learns from it; None: there is none.
        source: Where the images are read from on this machine, as for `load_data`; "": from the row's data.
    """

    row: Row
    seed: int
    folder: Path
    data_dir: Path | None = None
    threads: int | None = None
    input_shape: tuple[int, int, int] | None = None
    val_fraction: float = 0.0
    test: bool = True
    keep: bool = False
    weights: Path | None = None
    teacher: Path | None = None
    source: str = ""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """The shape that images are brought to."""
        return self.input_shape or self.row.shape


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job: the content of its ``result.json``, or why there is none."""

    content: dict[str, Any] | None
    failure: str = ""


def check_at_least_one(**counts: int | None) -> None:
    """Refuse an option that is below 1 or far beyond any machine; None is one that was not given."""
    for name, count in counts.items():
        if count is not None and not 1 <= count <= _MOST:
            raise RunError(f"{name}={brief(count)}: give at least 1, and at most {_MOST}")


def finished(job: Job) -> dict[str, Any] | None:
    """Return the result of a training that is done already, None if it is not (or was another one)."""
    path = job.folder / "result.json"
    if not path.is_file():
        return None
    content = read_json(path, ROW_FORMAT)
    if content.get("searches") and content.get("judgement", 1) != JUDGEMENT:  # they might find other networks now
        return None
    return content if _same(content["asked"], asked(job)) else None


def asked(job: Job) -> dict[str, Any]:
    """Return what a training depends on, as plain values."""
    row = job.row
    values: dict[str, Any] = {
        "model": row.model,
        "options": dict(row.options),
        "data": row.data,
        "recipe": row.recipe.updated(seed=job.seed).model_dump(mode="json") if row.recipe is not None else None,
    }
    if row.design:
        values["design"] = plain([{"design": each.kind, **asdict(each)} for each in row.design])  # type: ignore[call-overload]
    if row.fresh:
        values["fresh"] = True
    if row.edits:
        values["edits"] = plain([edit.to_dict() for edit in row.edits])
    if job.shape is not None:
        values["input_shape"] = list(job.shape)
    if held := job.val_fraction or row.held:
        values["val_fraction"] = held
    if row.probes:
        values["probes"] = list(row.probes)
    if row.study is not None:
        values["study"] = plain({"study": row.study.kind, **asdict(row.study)})  # type: ignore[call-overload]
    if ".py:" in row.model:  # the file may change between two calls
        values["file"] = digest(Path(row.model.rpartition(":")[0]))
    if job.weights is not None:
        values["weights"] = digest(job.weights)
    return values


def _same(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if stored["recipe"] is None or wanted["recipe"] is None:
        return stored == wanted
    # As recipes, not as texts: a field that was added since then has its default in both.
    try:
        recipes = Recipe(**stored["recipe"]) == Recipe(**wanted["recipe"])
    except RecipeError:  # a field or technique of another version
        return False
    return recipes and {**stored, "recipe": None} == {**wanted, "recipe": None}


def carry_out(job: Job) -> dict[str, Any]:
    """Train one row with one seed and record it; an unfinished training of the same is continued.

    Raises:
        ConvwrightError: As for `train`.
    """
    if job.row.recipe is None:
        return _counted(job)
    resumed, question = _prepared(job), asked(job)
    data = _data(job)
    form = _settled(job, data.shape)
    if (twin := _twin(job, form)) is not None:
        return _taken_over(job, form, twin)
    job, model, data = _as_decided(job, form, data)
    shape = (1, *data.shape)
    known = facts(read(model, shape))  # before the training: what cannot be told must not cost one
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start, processor = time.perf_counter(), time.process_time()
    trained = _trained(job, model, data, test=job.test)
    after = read(trained.model, shape)
    costs = profile(after)
    content = {
        **_begun(job, question, form),
        "params": costs.params,
        "macs": costs.macs,
        "facts": known,
        **({"quality": quality_facts(after)} if job.row.quality else {}),
        "validation": judged(trained.val),
        "test": judged(trained.test),
        "test_flip": judged(trained.test_flip),
        "warnings": list(trained.warnings),
        "history": [asdict(record) for record in trained.history],
        "settings": {
            **{n: getattr(trained.settings, n) for n in ("precision", "memory_format", "threads", "device")},
            **({} if trained.settings.lr is None else {"lr": trained.settings.lr}),
        },
        "seconds": trained.seconds,
        # Of the whole process, testing included; unknown where an earlier process did a part.
        "processor_seconds": None if resumed else time.process_time() - processor,
        "elapsed_seconds": time.perf_counter() - start,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "versions": versions(),
        "machine": machine(),
        **_studied(job, trained, data),
    }
    save_weights(trained.model, job.folder / "model.safetensors")
    write_json(job.folder / "result.json", content)
    if not job.keep:
        (job.folder / "checkpoint.pt").unlink(missing_ok=True)
    return content


def _studied(job: Job, trained: TrainResult, data: ImageData) -> dict[str, Any]:
    row = job.row
    if row.study is None or row.recipe is None:
        return {}
    start = time.process_time()
    found = row.study.carry_out(trained.model, data, row.recipe.updated(seed=job.seed), trained.probes)
    return {"study": found, "study_processor_seconds": time.process_time() - start}


def _counted(job: Job) -> dict[str, Any]:
    """Count one row's network and record it.

    Raises:
        ConvwrightError: It cannot be made or read, or torch counts other MACs than convwright.
    """
    start = time.perf_counter()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    form = _settled(job, job.shape)
    arch = opened(job.row.model, form, job.shape)
    costs, by_torch = profile(arch), count_by_torch(arch.model, arch.inputs)
    if costs.macs != by_torch:
        raise RunError(
            f"{job.row.name}: {costs.macs:,} MACs, but torch counts {by_torch:,}; please report this network"
        )
    content = {
        **_begun(job, asked(job), form),
        "units": depths_of(job.row.model, form.options),
        "params": sum(parameter.numel() for parameter in arch.model.parameters()),
        "macs": costs.macs,
        "facts": facts(arch),
        "seconds": time.perf_counter() - start,
        "versions": versions(),
        "machine": machine(),
    }
    write_json(job.folder / "result.json", content)
    return content


def _twin(job: Job, form: NetworkSpec) -> Path | None:
    """Return the folder of a finished training beside this one of the very network that a design led to."""
    if not job.row.design:
        return None
    wanted = _as_made(asked(job), form.as_dict())
    for path in sorted(job.folder.parent.glob("*/result.json")):
        content = read_json(path, ROW_FORMAT)
        if path.parent != job.folder and _same(_as_made(content["asked"], content.get("form")), wanted):
            return path.parent
    return None


def _as_made(question: dict[str, Any], form: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a training depends on, with a design's answer in place of its question."""
    rest = {key: value for key, value in question.items() if key not in ("design", "edits")}
    return {**rest, **(form or {"options": question["options"], "edits": question.get("edits", [])})}


def _taken_over(job: Job, form: NetworkSpec, twin: Path) -> dict[str, Any]:
    """Record another row's training as this one's: it would be repeated bit for bit."""
    found = read_json(twin / "result.json", ROW_FORMAT)
    left = {key: value for key, value in found.items() if key not in ("form", "searches")}
    content = left | _begun(job, asked(job), form) | {"same_as": found.get("same_as", found["row"])}
    shutil.copyfile(twin / "model.safetensors", job.folder / "model.safetensors")
    write_json(job.folder / "result.json", content)
    return content


def _settled(job: Job, shape: tuple[int, int, int] | None) -> NetworkSpec:
    """Return how the network is made; searches that this needs are carried out, or read where they were before."""
    searches, row = job.folder.parent.parent / "searches", job.row
    start = NetworkSpec({})
    context = DesignContext(shape, start, searches, row.data, job.data_dir, job.threads, job.source, job.seed)
    return form_of(row, context)


def _begun(job: Job, question: dict[str, Any], form: NetworkSpec) -> dict[str, Any]:
    """Return what each result begins with, and how the network was made, where that says more than the row does."""
    content = {"format": ROW_FORMAT, "judgement": JUDGEMENT, "row": job.row.name, "seed": job.seed, "asked": question}
    content |= {"form": form.as_dict()} if job.row.design or job.row.edits else {}
    if form.searches:
        content["searches"] = [read_json(folder / "result.json", SEARCH_FORMAT) for folder in form.searches]
    return content


def judge(job: Job) -> dict[str, Any]:
    """Judge a finished training, whose checkpoint was kept, on the test part; once, the answer is recorded.

    Raises:
        ConvwrightError: There is no finished training, or as for `train`.
    """
    content = finished(job)
    if content is None:
        raise RunError(f"{job.folder}: no finished training; train it first")
    if content["test"] is None:
        _prepared(job)
        data = _data(job)
        trained = _trained(*_as_decided(job, _settled(job, data.shape), data), test=True)
        content = {**content, "test": judged(trained.test)}
        write_json(job.folder / "result.json", content)
    return content


def _prepared(job: Job) -> bool:
    """Set the threads and the folder up; return whether an unfinished training of the same is continued."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    checkpoint, note, wanted = job.folder / "checkpoint.pt", job.folder / "asked.json", asked(job)
    if note.is_file():
        known = read_json(note, ASKED_FORMAT)
        alike = not job.row.design or known.get("judgement", 1) == JUDGEMENT  # a design may search
        if not (alike and _same(known["asked"], wanted)):
            checkpoint.unlink(missing_ok=True)  # of a training that nobody asks for any more
    write_json(note, {"format": ASKED_FORMAT, "judgement": JUDGEMENT, "asked": wanted})
    return checkpoint.is_file()


def _trained(job: Job, model: torch.nn.Module, data: ImageData, test: bool) -> TrainResult:
    assert job.row.recipe is not None  # such rows are counted
    recipe = job.row.recipe.updated(seed=job.seed)
    teacher: dict[str, Any] = {}
    if job.teacher is not None and "distill" in recipe.techniques:
        original = made(job.row.model, NetworkSpec(job.row.options), data.shape, job.seed)
        load_weights(original, job.teacher)
        teacher = {"teacher": original}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecipeWarning)  # they are in the result, and in the table
        how: dict[str, Any] = {"progress": False, "test": test, "probes": job.row.probes, **teacher}
        return train(model, data, recipe, out=job.folder, resume=True, **how)


def _as_decided(job: Job, form: NetworkSpec, data: ImageData) -> tuple[Job, torch.nn.Module, ImageData]:
    """Return the job with the epochs, its network, and the data at the resolution that the row's designs decided on.

    Weights depend on the seed and on nothing else, unless a file gives them.
    """
    if form.epochs is not None and job.row.recipe is not None:
        job = replace(job, row=replace(job.row, recipe=job.row.recipe.updated(epochs=form.epochs)))
    model = made(job.row.model, form, data.shape, job.seed, job.row.fresh)
    if job.weights is not None:  # the user's: its head may be of other classes
        take(model, read_checkpoint(job.weights), scores(model, torch.zeros(1, *data.shape)).shape[1])
    elif form.weights is not None:
        load_weights(model, form.weights)
    job = replace(job, teacher=form.teacher)
    return job, model, data if form.resolution is None else resized_data(data, form.resolution)


def _data(job: Job) -> ImageData:
    resize, source = job.row.recipe.resize if job.row.recipe is not None else Resize(), job.source or job.row.data
    return _loaded(source, job.data_dir, job.shape, job.val_fraction or job.row.held, resize)


@lru_cache(maxsize=2)
def _loaded(
    spec: str, data_dir: Path | None, shape: tuple[int, int, int] | None, val_fraction: float, resize: Resize
) -> ImageData:
    return load_data(spec, data_dir, input_shape=shape, val_fraction=val_fraction, resize=resize)


def carried_out(work: Sequence[Job], jobs: int) -> Iterator[tuple[Job, JobOutcome]]:
    """Train in this process or in `jobs` processes; a row that fails by itself does not stop the others.

    Raises:
        ConvwrightError: What stops all: data, a full disk, a process that was killed.
    """
    _loaded.cache_clear()  # files may have changed since an earlier call
    return in_turn_or_side_by_side(attempted, work, jobs)


def attempted(job: Job) -> JobOutcome:
    """Train, or say why this row cannot be trained."""
    try:
        return JobOutcome(carry_out(job))
    except _OWN_FAILURES as error:
        return JobOutcome(None, " ".join(str(error).split()))
