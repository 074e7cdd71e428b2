"""Designs that train: a search whose trials decide a row's widths, recorded as a run and carried out once.

Layout of the folder of one search, beside the rows of its experiment::

    searches/NETWORK-METHOD-DIGEST/   run.json, run.db, trials: see `convwright.runs.directory.study`
    searches/.../found.safetensors    the found network with its inherited weights, where it inherits any
    searches/.../result.json          what it found and what that cost, once it is finished

The digest is of everything that the search depends on, so that rows with the same question share the answer: who comes
second waits for the first. A search that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import filelock

from convwright.architecture import Architecture
from convwright.cost.budget import Limits, parse_budget
from convwright.edits import Edit, Plan, Resolution
from convwright.edits.plan_file import edits_of
from convwright.errors import RecipeError, RunError
from convwright.experiments.designs.design import SEARCH_FORMAT, DesignContext, NetworkSpec, limits_of, opened, plain
from convwright.methods import Candidate, Evidence, Method, method_named
from convwright.methods.base import WrappedMethod
from convwright.runs.candidate_recipe import settled_recipe
from convwright.runs.directory.files import digest, read_json, save_weights, write_json
from convwright.runs.directory.provenance import JUDGEMENT, machine, versions
from convwright.runs.directory.study import Study
from convwright.runs.evaluate import Evaluator, precision_and_layout
from convwright.runs.executors import InProcess
from convwright.runs.latency import RunLatency, latency_of
from convwright.runs.loop import search
from convwright.training import ImageData, Recipe, load_data

Transfer = Literal["svd", "net2wider", "fresh"]
FOUND = "found.safetensors"  # the weights that a found network inherits, where it does
_DIGITS = 5  # of recorded qualities and scores


@dataclass(frozen=True)
class Searched:
    """A search with trainings of its own decides the edits; its final trainings are left to the rows.

    Attributes:
        method: Name of a search method that compares its result with the untouched network.
        options: Of the method, e.g. ``{"rule": "greedy", "trials": 12}``.
        budget: E.g. ``macs<=50%`` of the network before any decision; "": none.
        recipe: Fields of the recipe of each trial; ``val_fraction`` is the part of the training images that it is
            judged on.
        seed: Of choices, weights and trainings.
    """

    kind: ClassVar[str] = "search"

    method: str = "channel-search"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    budget: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int = 0

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the found edits at the end.

        Raises:
            RecipeError: The search ended without a result.
        """
        folder = Question(self, model, form, setting).answered(self.method_for)
        return form.joined(edits_of_record(read_json(folder / "result.json", SEARCH_FORMAT)["edits"]), folder)

    def method_for(self, arch: Architecture, limits: Limits | None) -> Method:
        """Return the method that searches, without its last batch."""
        make: Any = method_named(self.method)
        given = {"epochs": 1, "tune_epochs": 1, "divisor": 1, "seed": self.seed, **self.options}  # as recorded
        return UpToTheEnd(make(arch, limits, **given))


@dataclass(frozen=True)
class Walked:
    """The widths of another search's trials, tried again in the same order with weights carried in another way.

    Attributes:
        search: Whose trials.
        weights: How each trial gets the weights of the one before: ``svd``, ``net2wider`` or ``fresh`` (not at all).
    """

    kind: ClassVar[str] = "walk"

    search: Searched
    weights: Transfer

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form of the last trial; the walk is recorded like a search."""
        folder = Question(self.search, model, form, setting).answered(self.search.method_for)
        steps = read_json(folder / "result.json", SEARCH_FORMAT)["trials"]
        tried = [edits_of_record(step["edits"]) for step in steps]
        epochs = [int(step["epochs"]) for step in steps]
        walk = Question(self, model, form, setting)
        folder = walk.answered(lambda arch, limits: _WidthWalk(arch, tried, epochs, self.weights, self.search.seed))
        return form.joined(tried[-1], folder)


# ------------------------------------------------------------------ methods


class UpToTheEnd(WrappedMethod):
    """A method without its last batch, in which the result is trained beside the untouched network."""

    decisions = ()  # only its log is recorded

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.found: Candidate | None = None
        self._trained: Candidate | None = None  # the last one

    def ask(self) -> tuple[Candidate, ...]:
        """Return the next batch; none where the result is known."""
        batch = self.method.ask()
        if not any(candidate.role == "baseline" for candidate in batch):
            return batch
        # A method that has trained its result already asks for the untouched network alone.
        self.found = next((candidate for candidate in batch if candidate.role == "candidate"), self._trained)
        return ()

    def tell(self, evidence: Evidence) -> None:
        """Pass it on."""
        if evidence.usable and evidence.candidate.epochs:
            self._trained = evidence.candidate
        self.method.tell(evidence)


class _WidthWalk(Method):
    """Candidates whose widths are known beforehand, one after the other."""

    def __init__(
        self, arch: Architecture, steps: Sequence[tuple[Edit, ...]], epochs: Sequence[int], weights: Transfer, seed: int
    ) -> None:
        empty = Plan.empty(arch)
        self.candidates = tuple(
            Candidate(
                empty.with_edits(*edits),
                number - 1 if number and weights != "fresh" else None,
                epochs[number],
                seed + number,
                weights=weights if number else "fresh",
            )
            for number, edits in enumerate(steps)
        )
        self.results: list[Evidence] = []
        self.found = self.candidates[-1]

    def ask(self) -> tuple[Candidate, ...]:
        return self.candidates[len(self.results) : len(self.results) + 1]

    def tell(self, evidence: Evidence) -> None:
        """Go on; without the weights of a step there is no next one."""
        if not evidence.usable:
            raise RecipeError(f"a walk cannot go on: its trial {evidence.trial} failed: {evidence.message}")
        self.results.append(evidence)

    def best(self) -> Evidence | None:
        return self.results[-1] if self.results else None


# ------------------------------------------------------------------ carried out once


@dataclass(frozen=True)
class Question:
    """What a search is asked, and where its answer is recorded.

    Attributes:
        design: The search, or the walk.
        model: The network's name.
        form: How it is made.
        setting: Data, and the folder of searches.
    """

    design: Searched | Walked
    model: str
    form: NetworkSpec
    setting: DesignContext

    @property
    def search(self) -> Searched:
        """The search whose budget, recipe and seed count."""
        return self.design.search if isinstance(self.design, Walked) else self.design

    def asked(self) -> dict[str, Any]:
        """Return everything that the answer depends on, as plain values."""
        values: dict[str, Any] = {
            "model": self.model,
            "form": self.form.as_dict(),
            "start": self.setting.start.as_dict() if self.search.budget else None,
            "shape": self.setting.shape,
            "data": self.setting.data,
            "design": {"design": self.design.kind, **asdict(self.design)},
        }
        if ".py:" in self.model:  # the file may change between two calls
            values["file"] = digest(Path(self.model.rpartition(":")[0]))
        if JUDGEMENT > 1:  # left out before, so that searches recorded then are found
            values["judgement"] = JUDGEMENT
        return dict(plain(values))

    @property
    def folder(self) -> Path:
        """Where the search is recorded."""
        if self.setting.searches is None:
            raise RunError(f"{self.model}: a design that trains can only be asked where its search is recorded")
        text = json.dumps(self.asked(), sort_keys=True)
        kind = f"walk-{self.design.weights}" if isinstance(self.design, Walked) else self.design.method
        network = "".join(c if c.isalnum() or c == "-" else "-" for c in self.model.rpartition(":")[2])
        return self.setting.searches / f"{network}-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def answered(self, make: Any) -> Path:
        """Carry the search out if that is not done yet; return its folder.

        Args:
            make: Returns the method, from the network and the limits.
        """
        return self.once(lambda folder: _carry_out(self, make, folder))

    def once(self, carry_out: Callable[[Path], None]) -> Path:
        """Return the folder of the answer, which `carry_out` has written into it: now, or in an earlier call.

        Another process at this search is waited for; the lock of one that was killed is free.
        """
        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "result.json").is_file():
                carry_out(folder)
        return folder

    def trained_on(self) -> tuple[Recipe, ImageData]:
        """Return the recipe of the search's trainings, and the data with the part that is held out."""
        setting, recipe = self.setting, Recipe(**{"seed": self.search.seed, **self.search.recipe})
        how: Any = {"input_shape": setting.shape, "val_fraction": recipe.val_fraction, "resize": recipe.resize}
        return recipe, load_data(setting.source or setting.data, setting.data_dir, **how)


def _carry_out(question: Question, make: Any, folder: Path) -> None:
    setting, (recipe, data) = question.setting, question.trained_on()
    arch = opened(question.model, question.form, setting.shape or data.shape)
    limits, latency = _limits(question, arch, folder)
    method = make(arch, limits)

    def settled() -> dict[str, Any]:
        chosen = precision_and_layout(arch, data, recipe)
        return chosen if latency is None else {**chosen, "latency": latency.as_dict()}

    with Study(folder, question.asked(), settled, resume=(folder / "run.json").is_file()) as study:
        evaluator = Evaluator(arch, data, settled_recipe(recipe, study.settled), study, progress=False)
        if latency is not None:
            latency.keep_in(folder)
        complete = None if latency is None else latency.completed
        trials = search(method, study, InProcess(evaluator), complete=complete)
        found = method.found
        if found is not None and found.parent is not None and found.weights == "inherit":
            # For rows whose training goes on from there.
            network = evaluator.build(found, {trial.trial: trial.candidate for trial in trials})
            save_weights(network.model, folder / FOUND)
    if found is None:
        why = why_none(method.log, trials)
        raise RecipeError(f"search {folder.name} ended without a result: it asked for no final network{why}")
    rows = [_trial(trial, evaluator.recipe, len(data.train)) for trial in trials]
    design = question.design
    called = f"walk, {design.weights}" if isinstance(design, Walked) else design.method
    history = _rounded([dict(each) for each in method.history])
    record(folder, question, called, found.plan.edits, rows, method.log, history, _qualities(trials))


def _limits(question: Question, arch: Architecture, folder: Path) -> tuple[Limits | None, RunLatency | None]:
    """Return the budget in numbers for the search, and what is known of the latency where it limits that."""
    asked, setting = question.search, question.setting
    if not asked.budget or not parse_budget(asked.budget).measures:
        return limits_of(asked.budget, question.model, setting), None
    latency = latency_of(arch, folder, lambda text: None)
    limits = limits_of(asked.budget, question.model, setting, latency.present)
    assert limits is not None
    beyond = method_named(asked.method).beyond_widths
    latency = latency.ready(limits, int(asked.options.get("divisor", 1)), beyond)
    return latency.aimed(limits), latency


def why_none(log: Sequence[str], trials: Sequence[Evidence]) -> str:
    """Return why a search found nothing, to end a sentence: its last decision, and the last of its failed trials.

    Args:
        log: What the method says of its decisions.
        trials: All of them.
    """
    failed = [f"trial {trial.trial} failed: {trial.message}" for trial in trials if not trial.usable]
    told = [*log[-1:], *failed[-1:]]
    return f" ({'; '.join(told)})" if told else ""


# ------------------------------------------------------------------ what is recorded


def record(
    folder: Path,
    question: Question,
    method: str,
    edits: Sequence[Edit],
    rows: list[dict[str, Any]],
    log: Sequence[str] = (),
    history: Sequence[Any] = (),
    qualities: dict[str, Any] | None = None,
) -> None:
    """Write what a search found and what that cost.

    Args:
        folder: Of the search.
        question: What it was asked.
        method: What it is called.
        edits: What it found.
        rows: Its trials, each with ``images`` seen in training, ``macs`` of one of them, and ``seconds``.
        log: What the method says of its decisions.
        history: Likewise, as plain values.
        qualities: Of the layers, where they were observed.
    """
    content = {
        "format": SEARCH_FORMAT,
        "asked": question.asked(),
        "method": method,
        "edits": plain([edit.to_dict() for edit in edits]),
        "trials": rows,
        "history": list(history),
        "qualities": qualities,
        "log": list(log),
        "images": sum(row["images"] for row in rows),
        "image_macs": sum(row["images"] * row["macs"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(folder / "result.json", content)


def images_seen(epochs: int, images: int, steps: int | None, recipe: Recipe) -> int:
    """Return how many images a training sees: those of all epochs, or of its steps where it has fewer."""
    return epochs * images if steps is None else min(epochs * images, steps * recipe.batch_size)


def _trial(trial: Evidence, recipe: Recipe, images: int) -> dict[str, Any]:
    """Return what one trial was and cost: images of its training, MACs of one image forwards."""
    candidate, costs = trial.candidate, trial.costs
    steps = candidate.recipe.get("max_steps", recipe.max_steps)
    return {
        "trial": trial.trial,
        "parent": candidate.parent,
        "weights": candidate.weights,
        "epochs": candidate.epochs,
        "edits": [edit.to_dict() for edit in candidate.plan.edits],
        "status": trial.status,
        "score": trial.score if trial.usable else None,
        "stderr": trial.stderr,
        "macs": costs.get("macs", 0),
        "params": costs.get("params", 0),
        "images": images_seen(candidate.epochs, images, steps, recipe) if trial.usable else 0,
        "seconds": trial.seconds,
    }


def _qualities(trials: Sequence[Evidence]) -> dict[str, Any] | None:
    """Return QC of every layer after each trial's last epoch: trials x layers x (input, output); None without."""
    tables = [trial.probes.get("channel-quality") for trial in trials if trial.usable]
    known = [table for table in tables if table and table["metrics"]["qc"]]
    if not known:
        return None
    return {
        "layers": list(known[0]["layers"]),
        "epochs": [len(table["metrics"]["qc"]) for table in known],
        "qc": _rounded([epoch for table in known for epoch in table["metrics"]["qc"]]),
    }


def _rounded(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dict), parse_float=lambda text: round(float(text), _DIGITS))


def edits_of_record(values: Sequence[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """Return the edits that a search recorded."""
    return tuple(edits_of([dict(value) for value in values], "a recorded search"))


@dataclass(frozen=True)
class At:
    """The network works on images of another size; the data are resized to it.

    Attributes:
        side: Height and width in pixels.
    """

    kind: ClassVar[str] = "at"

    side: int

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with this resolution."""
        return form.joined((Resolution(self.side),))


@dataclass(frozen=True)
class Tried:
    """One of the networks that a search tried, whatever the search made of it.

    Attributes:
        search: Whose trials.
        number: Which of its candidates, from 0; what it trained to begin with does not count.
        beside: Further searches that tried the same networks in another way; they are recorded with the row.
    """

    kind: ClassVar[str] = "tried"

    search: Searched
    number: int
    beside: tuple[Searched, ...] = ()

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the candidate's edits at the end.

        Raises:
            RunError: The search tried fewer networks.
        """
        folders = [
            Question(each, model, form, setting).answered(each.method_for) for each in (self.search, *self.beside)
        ]
        trials = [t for t in read_json(folders[0] / "result.json", SEARCH_FORMAT)["trials"] if t["edits"]]
        if self.number >= len(trials):
            raise RunError(f"{model}: candidate {self.number} was asked for, but the search tried {len(trials)}")
        return form.joined(edits_of_record(trials[self.number]["edits"]), *folders)
