"""``optimize``: from a network, data and a budget to a proved result in a run directory."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.cost import Comparison, profile
from convwright.cost.budget import MEASURED, Budget, Limits, check_feasible, feasible_range, human, parse_budget
from convwright.edits import check_execution
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Evidence, Method, method_named
from convwright.runs.evaluate import Evaluator, changed_recipe, refuse_structural
from convwright.runs.files import load_weights, read_json, save_weights, write_json, write_text
from convwright.runs.latency import RunLatency, WithLatency, judged_latency, measured_latency, recorded_latency
from convwright.runs.machine import machine, versions
from convwright.runs.method_options import checked_options
from convwright.runs.networks import FILE as NETWORKS
from convwright.runs.networks import networks
from convwright.runs.opening import Opened, Shape, open_both, parse_input
from convwright.runs.prove import Proof, check_budget, prove
from convwright.runs.result import FORMAT, Result, load_result
from convwright.runs.search import Evaluate, Say, search
from convwright.runs.study import FORMAT as RUN
from convwright.runs.study import WEIGHTS, Study, check_folder
from convwright.training import Metrics, Recipe
from convwright.training.images import Images
from convwright.training.preflight import make_fabric, settle
from convwright.training.recipe import as_recipe
from convwright.training.resized import resized_images

INITIAL = "initial.safetensors"


def optimize(
    model: nn.Module | str,
    data: Any,
    budget: str | Sequence[str],
    method: str = "auto",
    out: str | Path | None = None,
    seed: int = 0,
    recipe: Recipe | str | Path | None = None,
    *,
    resume: bool = False,
    epochs: int | None = None,
    tune_epochs: int | None = None,
    divisor: int = 1,
    weights: str | Path | None = None,
    input_shape: str | Shape | None = None,
    data_dir: str | Path | None = None,
    progress: bool = True,
    workers: int | None = None,
    say: Say | None = None,
    command: str = "",
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Redesign a network to a budget, and prove the result.

    Args:
        model: As for `convwright.read`; a named network is created with as many outputs as the data
            have classes.
        data: As for `convwright.training.load_data`.
        budget: One or several, such as ``"macs<=50%"``, ``["macs<=600M", "params<=1500"]``, ``"latency<=3ms"``.
        method: Name of a search method.
        out: Run directory; None: named after model and budget, in ``runs/``.
        seed: Of initial weights, choices and trainings.
        recipe: How to train: a recipe, a preset's name or a .yaml file.
        resume: Continue the run in `out`, which must have been started with the same settings.
        epochs: Of the first training of the untouched network; None: the recipe's; with `weights`: none.
        tune_epochs: Of every training after that, of the baseline's, too; None: half the recipe's.
        divisor: Widths are rounded to multiples of this.
        weights: A .safetensors file or a torch state dict: the network comes trained.
        input_shape: Images are resized to it, ``"3x224x224"`` or (3, 224, 224).
        data_dir: Where named data sets lie.
        progress: Whether trainings show how far they are.
        workers: Processes that read a streamed data set.
        say: Called with lines for a person; None: they are printed to standard error, if `progress`.
        command: What was typed, for the record.
        options: Of the method, by the names of its keyword arguments, as JSON values: ``{"trials": 12}``.

    Returns:
        The proved result; its files are in the run directory.

    Raises:
        ReadError: The network cannot be read.
        DataError: The data cannot be read or do not fit the network.
        BudgetError: The budget does not parse, cannot be met (before any training), or was not met
            (then no result is written).
        RecipeError: The recipe is invalid, or has a technique that edits the network.
        RunError: The directory is damaged, in use, not empty, or was started with other settings.
    """
    asked = Asked(
        model=model,
        data=data,
        budget=(budget,) if isinstance(budget, str) else tuple(budget),
        method=method,
        out=Path(out) if out is not None else default_folder(model, budget),
        seed=seed,
        recipe=as_recipe(recipe),
        epochs=epochs,
        tune_epochs=tune_epochs,
        divisor=divisor,
        weights=Path(weights) if weights is not None else None,
        input_shape=parse_input(input_shape),
        data_dir=data_dir,
        progress=progress,
        workers=workers,
        say=say or (_to_stderr if progress else lambda text: None),
        command=command,
        options=dict(options or {}),
    )
    return _Job(asked).run(resume)


def default_folder(model: nn.Module | str, budget: str | Sequence[str]) -> Path:
    """Return ``runs/MODEL-BUDGET`` with nothing in it that a file system minds."""
    name = model if isinstance(model, str) else type(model).__name__
    parts = [name, *([budget] if isinstance(budget, str) else budget)]
    words = "-".join(part.replace("<=", "").replace("%", "pct") for part in parts)
    return Path("runs") / re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.").lower()


@dataclass(frozen=True, eq=False)
class Asked:
    """What `optimize` was called with, defaults filled in."""

    model: nn.Module | str
    data: Any
    budget: tuple[str, ...]
    method: str
    out: Path
    seed: int
    recipe: Recipe
    epochs: int | None
    tune_epochs: int | None
    divisor: int
    weights: Path | None
    input_shape: Shape | None
    data_dir: str | Path | None
    progress: bool
    workers: int | None
    say: Say
    command: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base_epochs(self) -> int:
        """Epochs of trial 0."""
        given = 0 if self.weights is not None else self.recipe.epochs
        return self.epochs if self.epochs is not None else given

    @property
    def later_epochs(self) -> int:
        """Epochs of every other trial."""
        return self.tune_epochs if self.tune_epochs is not None else max(1, self.recipe.epochs // 2)

    def check(self) -> None:
        """Refuse what is wrong whatever the network and the data are.

        Raises:
            ConvwrightError: Unknown method or option of it, negative numbers.
            RecipeError: A technique of the recipe edits the network.
        """
        checked_options(self.method, self.options)
        refuse_structural(self.recipe)
        for name, value, least in (
            ("epochs", self.base_epochs, 0),
            ("tune-epochs", self.later_epochs, 1),
            ("divisor", self.divisor, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ConvwrightError(f"{name}={value} must be a whole number from {least} on")

    def settings(self, opened: Opened, limits: Limits) -> dict[str, Any]:
        """Return what the results depend on, as plain JSON values."""
        shape = "x".join(map(str, opened.data.shape))
        return {
            "model": opened.arch.source,
            "options": opened.options,
            "architecture": _digest(opened.arch),
            "data": f"{opened.data.name} ({len(opened.data.train)} training images {shape})",
            "budget": list(self.budget),
            "limits": dict(limits.limits),
            "method": self.method,
            "recipe": self.recipe.model_dump(mode="json"),
            "epochs": self.base_epochs,
            "tune_epochs": self.later_epochs,
            "divisor": self.divisor,
            "seed": self.seed,
            "weights": str(self.weights) if self.weights is not None else None,
            # Left out when there are none, so that runs started before there were such options are resumed.
            **({"method_options": dict(self.options)} if self.options else {}),
        }


@dataclass
class _Clock:
    """Seconds per part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class _Job:
    """One call of `optimize`: its parts in order."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.clock = _Clock()
        self.terms = Budget(())
        self.latency: RunLatency | None = None  # only where the budget limits it

    def run(self, resume: bool) -> Result:
        asked = self.asked
        asked.check()
        self.terms = parse_budget(list(asked.budget))
        check_folder(asked.out, resume)
        with self.clock.part("read"):
            opened = self.open()
        with self.clock.part("latency"):
            self.latency = self.measured(opened.arch, resume)
        limits = self.terms.resolve(profile(opened.arch), self.latency.present if self.latency else None)
        aims = self.aims(opened.arch, limits, resume)
        make: Callable[..., Method] = method_named(asked.method)
        with self.clock.part("plan"):
            method = make(
                opened.arch,
                aims,
                epochs=asked.base_epochs,
                tune_epochs=asked.later_epochs,
                seed=asked.seed,
                divisor=asked.divisor,
                **checked_options(asked.method, asked.options),
            )
        settings = asked.settings(opened, limits)
        with Study(asked.out, settings, lambda: self.settle(opened), resume=resume, command=asked.command) as study:
            evaluator = self.evaluator(opened, study)
            with self.clock.part("search"):
                found = search(method, study, self.evaluate(evaluator), asked.say)
            decisions = tuple(decision.to_dict() for decision in getattr(method, "decisions", ()))
            log = tuple(getattr(method, "log", ()))
            ended = _Ended(found, _chosen(method.best(), found), _baseline(found), decisions, log)
            return self.finish(ended, evaluator, limits)

    # ------------------------------------------------------------------ before

    def open(self) -> Opened:
        asked = self.asked
        opened = open_both(
            asked.model,
            asked.data,
            input_shape=asked.input_shape,
            data_dir=asked.data_dir,
            val_fraction=asked.recipe.val_fraction,
            seed=asked.seed,
        )
        if asked.weights is not None:
            load_weights(opened.arch.model, asked.weights)
        return self.checked(opened)

    def checked(self, opened: Opened) -> Opened:
        """Freeze the channel groups that the network's own code does not let change."""
        found = check_execution(opened.arch)
        if found.fixed:
            reason = next(iter(found.fixed.values()))
            self.asked.say(f"{len(found.fixed)} channel groups stay as they are: {reason}")
        return replace(opened, arch=found.architecture)

    def measured(self, arch: Architecture, resume: bool) -> RunLatency | None:
        """Measure the latency where the budget limits it; a resumed run keeps what it measured."""
        if not self.terms.measures:
            return None
        folder = self.asked.out
        settled = read_json(folder / "run.json", RUN).get("settled") if resume else None
        if isinstance(settled, dict) and "latency" in settled:
            return recorded_latency(arch, settled["latency"], folder)
        return measured_latency(arch, self.asked.say)

    def aims(self, arch: Architecture, limits: Limits, resume: bool) -> Limits:
        """Show the limits, refuse what cannot be met, and return what the search is to keep to."""
        aims = limits if self.latency is None else self.latency.aimed(limits)
        self.show(arch, limits, aims)
        check_feasible(aims, arch)
        if self.latency is None:
            return limits
        if not (resume and self.latency.rounds):
            with self.clock.part("latency"):
                self.latency = self.latency.calibrated(limits, self.asked.divisor, self.asked.say)
        return self.latency.aimed(limits)

    def show(self, arch: Architecture, limits: Limits, aims: Limits) -> None:
        costs = profile(arch)
        self.asked.say(f"{arch.source}: {costs.macs:,} MACs, {costs.params:,} parameters")
        for metric, (least, most) in feasible_range(arch, aims.estimates).items():
            if metric in MEASURED:
                reach = f"from about {human(least, metric)} to {human(most, metric)}"
            else:
                reach = f"from {least:,} to {most:,}"
            self.asked.say(f"feasible {metric}: {reach} by changing widths")
        self.asked.say(f"budget: {limits.describe()}")

    def settle(self, opened: Opened) -> dict[str, Any]:
        """Choose precision and layout once, so that all trials are trained alike."""
        device = make_fabric("auto", "32-true").device
        chosen = settle(opened.arch.model.to(device), opened.data, self.asked.recipe, device, None)
        settled: dict[str, Any] = {"precision": chosen.precision, "memory_format": chosen.memory_format}
        return settled if self.latency is None else {**settled, "latency": self.latency.as_dict()}

    def evaluator(self, opened: Opened, study: Study) -> Evaluator:
        """Return what evaluates candidates, from the weights that the run started with."""
        initial = study.folder / INITIAL
        if initial.is_file():
            load_weights(opened.arch.model, initial)
        else:
            save_weights(opened.arch.model, initial)
        if self.latency is not None:
            self.latency.keep_in(study.folder)
        settled = {name: value for name, value in study.settled.items() if name != "latency"}
        recipe = self.asked.recipe.updated(**settled)
        return Evaluator(opened.arch, opened.data, recipe, study, self.asked.progress, self.asked.workers)

    def evaluate(self, evaluator: Evaluator) -> Evaluate:
        """Return what the search calls: the evaluator, with latency among the costs where the budget limits it."""
        return evaluator if self.latency is None else WithLatency(evaluator, self.latency)

    # ------------------------------------------------------------------ after

    def finish(self, ended: _Ended, evaluator: Evaluator, limits: Limits) -> Result:
        """Prove, judge on the test part, and write the result's files."""
        study = evaluator.study
        old = load_result(study.folder)
        if old is not None:  # a finished run: the test part is not read again
            return Result(study.folder, ended.best, ended.baseline, ended.trials, old)
        with self.clock.part("proof"):
            proofs = [self.proof(trial, evaluator) for trial in (ended.baseline, ended.best)]
            times = self.latency.compare(proofs[0].arch, proofs[1].arch) if self.latency else None
            met = check_budget(proofs[1], limits, self.judged(times))
        with self.clock.part("test"):
            judged = [self.test(proof, evaluator) for proof in proofs]
        trials = (ended.baseline, ended.best)
        sides = [_side(*of) for of in zip(trials, proofs, judged, strict=True)]
        if times is not None:
            for side, name in zip(sides, ("before", "after"), strict=True):
                side["latency"] = times.latencies[name].as_dict()
        content = self.content(ended, evaluator, limits, met) | {"baseline": sides[0], "result": sides[1]}
        plan = ended.best.candidate.plan
        write_text(study.folder / "plan.json", plan.to_json())
        save_weights(proofs[1].arch.model, study.folder / WEIGHTS)
        write_json(study.folder / NETWORKS, networks(proofs[0].arch, proofs[1].arch, self.latency))
        write_json(study.folder / "result.json", content)  # last: it says that the others are whole
        return Result(study.folder, ended.best, ended.baseline, ended.trials, content)

    def proof(self, trial: Evidence, evaluator: Evaluator) -> Proof:
        return prove(evaluator.arch, trial.candidate.plan, evaluator.study.weights(trial.trial))

    def judged(self, times: Comparison | None) -> dict[str, Any] | None:
        """Judge the latency of the result, measured in turns with the untouched network."""
        terms = [term for term in self.terms.terms if term.metric == "latency"]
        return judged_latency(terms[0], times) if times is not None else None

    def test(self, proof: Proof, evaluator: Evaluator) -> Metrics | None:
        if not evaluator.data.has_test:
            return None
        height, width = proof.arch.example_input.shape[-2:]
        images: Images = resized_images(evaluator.data.test, (int(height), int(width)))
        return evaluator.judge(proof.arch.model, images)

    def content(self, ended: _Ended, evaluator: Evaluator, limits: Limits, met: dict[str, Any]) -> dict[str, Any]:
        """Return everything of ``result.json`` but the two sides that are compared."""
        trials = [
            {
                **t.to_dict(),
                "role": t.candidate.role,
                "parent": t.candidate.parent,
                "epochs": t.candidate.epochs,
                "weights": t.candidate.weights,
                "recipe": dict(t.candidate.recipe),
            }
            for t in ended.trials
        ]
        spent = {f"trial {t.trial}": t.seconds for t in ended.trials}
        measured = {} if self.latency is None else {"latency": self.latency.summary()}
        return {
            "format": FORMAT,
            "version": 1,
            **evaluator.study.settings,
            "limits": dict(limits.limits),
            "budget_met": met,
            **measured,
            "trained_with": _recipe(ended.best, evaluator),
            "baseline_trained_with": _recipe(ended.baseline, evaluator),
            "trials": trials,
            "decisions": list(ended.decisions),
            "log": list(ended.log),
            "seconds": {**self.clock.seconds, **spent},
            "versions": versions(),
            "machine": machine(),
            "command": self.asked.command,
        }


@dataclass(frozen=True, eq=False)
class _Ended:
    trials: tuple[Evidence, ...]
    best: Evidence
    baseline: Evidence
    decisions: tuple[Mapping[str, Any], ...] = ()
    log: tuple[str, ...] = ()


def _recipe(trial: Evidence, evaluator: Evaluator) -> dict[str, Any]:
    """Return the recipe of a trial's last training."""
    return changed_recipe(evaluator.recipe, trial.candidate.recipe).model_dump(mode="json")


def _chosen(best: Evidence | None, trials: Sequence[Evidence]) -> Evidence:
    if best is not None:
        return best
    failed = [t for t in trials if not t.usable]
    why = f"trial {failed[0].trial}: {failed[0].message}" if failed else "no trial meets the budget"
    raise RunError(f"the search found nothing: {why}")


def _baseline(trials: Sequence[Evidence]) -> Evidence:
    """Return the untouched network trained as long as the result; without one, as it was at first."""
    by_role = {t.candidate.role: t for t in trials if t.usable}
    found = by_role.get("baseline") or by_role.get("base")
    if found is None:
        raise RunError("the untouched network could not be trained: there is nothing to compare with")
    return found


def _side(trial: Evidence, proof: Proof, test: Metrics | None) -> dict[str, Any]:
    validation = {"accuracy": trial.score, "stderr": trial.stderr}
    return {"trial": trial.trial, **proof.as_dict(), "validation": validation, "test": _judged(test)}


def _judged(metrics: Metrics | None) -> dict[str, Any] | None:
    if metrics is None:
        return None
    return {"accuracy": metrics.accuracy, "stderr": metrics.stderr, "samples": metrics.samples}


def _digest(arch: Architecture) -> str:
    """Return a digest of the structure and of all shapes, without the weights."""
    state = [(name, tuple(tensor.shape)) for name, tensor in arch.model.state_dict().items()]
    return hashlib.sha256(f"{arch.model}{state}".encode()).hexdigest()[:16]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
