"""``optimize``: from a network, data and a budget to a proved result in a run directory."""

from __future__ import annotations

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
from convwright.cost.budget import MEASURED, Budget, Limits, check_feasible, feasible_range, human
from convwright.edits import check_execution
from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method, method_named
from convwright.methods.options import checked_options
from convwright.runs.config import RunConfig, sought, terms_of
from convwright.runs.directory.files import load_weights, read_json, save_weights, write_json, write_text
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import networks
from convwright.runs.directory.provenance import machine, versions
from convwright.runs.directory.result import FORMAT, Result, load_result
from convwright.runs.directory.study import FORMAT as RUN
from convwright.runs.directory.study import WEIGHTS, Study, check_folder
from convwright.runs.evaluate import Evaluator, changed_recipe, leave_out_known_techniques, settled_recipe
from convwright.runs.executors import Completed, Executor, Placement, threads_of
from convwright.runs.front import write_front
from convwright.runs.latency import RunLatency, beyond_widths, judged_latency, latency_of
from convwright.runs.load import LoadedModel, Shape, load_model_and_data, parse_input
from convwright.runs.loop import Say, carried_out, search
from convwright.runs.memory import PROBE, in_parts
from convwright.runs.outcome import SearchOutcome, side, trial_entry
from convwright.runs.prove import Proof, check_budget, prove
from convwright.runs.proxy import ProxyConfig, proxied, whole_trainings
from convwright.runs.time_budget import TimeBudget, baseline_of, epoch_seconds
from convwright.training import Metrics, Recipe
from convwright.training.data.images import Images
from convwright.training.data.proxy import Proxy
from convwright.training.data.resized import resized_images
from convwright.training.preflight import make_fabric, resolve
from convwright.training.recipe.recipe import as_recipe

INITIAL = "initial.safetensors"
Found = tuple[Evidence, ...]


def optimize(
    model: nn.Module | str,
    data: Any,
    budget: str | Sequence[str] = (),
    method: str | None = None,
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
    time: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    storage: str | None = None,
    proxy_classes: int | None = None,
    proxy_samples: int | None = None,
    objective: str | Sequence[str] | None = None,
) -> Result:
    """Redesign a network to a budget, and prove the result.

    Args:
        model: As for `convwright.read`; a named network is created with as many outputs as the data
            have classes.
        data: As for `convwright.training.load_data`.
        budget: One or several, such as ``"macs<=50%"``, ``["macs<=600M", "params<=1500"]``, ``"latency<=3ms"``; with
            an objective it may be left out.
        method: Name of a search method; None: ``auto``, or ``pareto`` where there is an objective.
        out: Run directory; None: named after model and budget, in ``runs/``.
        seed: Of initial weights, choices and trainings.
        recipe: How to train: a recipe, a preset's name or a .yaml file.
        resume: Continue the run in `out`, which must have been started with the same settings; only budget and time
            may be others: what was tried already is not tried again.
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
        time: Of all trials together, such as ``30m``; then the search ends with its best so far. None: no limit.
        placement: Where candidates are worked on, and how many at a time.
        storage: URL of a database for the trials, such as ``postgresql://user@host/runs``; None: a file in `out`.
        proxy_classes: Candidates are ranked on so many classes; result and untouched network are trained on all data.
        proxy_samples: Likewise on so many training images.
        objective: Accuracy and one or two costs, such as ``"accuracy,macs"``: several networks are sought, of which
            none is beaten in all of them; they are in ``front/`` of the run directory.

    Returns:
        The proved result; its files are in the run directory.

    Raises:
        ReadError: The network cannot be read.
        DataError: The data cannot be read, do not fit the network, or have less than a proxy was to have.
        BudgetError: The budget does not parse, cannot be met (before any training), or was not met
            (then no result is written).
        RecipeError: The recipe is invalid, or has a technique that edits the network.
        RunError: The directory is damaged, in use, not empty, or was started with other settings.
    """
    method, given = sought(method, objective, options)
    asked = RunConfig(
        model=model,
        data=data,
        budget=(budget,) if isinstance(budget, str) else tuple(budget),
        method=method,
        out=Path(out) if out is not None else default_folder(model, budget, objective or ()),
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
        options=given,
        time=TimeBudget.parse(time) if time is not None else None,
        placement=placement,
        storage=storage,
        proxy=ProxyConfig.of(proxy_classes, proxy_samples, seed),
    )
    return _Job(asked).run(resume)


def default_folder(
    model: nn.Module | str, budget: str | Sequence[str] = (), objective: str | Sequence[str] = ()
) -> Path:
    """Return ``runs/MODEL-BUDGET`` with nothing in it that a file system minds; costs sought come last."""
    name = model if isinstance(model, str) else type(model).__name__
    parts = [name, *([budget] if isinstance(budget, str) else budget)]
    parts += [objective] if isinstance(objective, str) else objective
    words = "-".join(part.replace("<=", "").replace("%", "pct") for part in parts)
    return Path("runs") / re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.").lower()


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

    def __init__(self, asked: RunConfig) -> None:
        self.asked = asked
        self.clock = _Clock()
        self.terms = Budget(())
        self.latency: RunLatency | None = None  # only where the budget limits it
        self.threads = 1

    def run(self, resume: bool) -> Result:
        asked = self.asked
        asked.check()
        self.terms = asked.terms
        check_folder(asked.out, resume)
        with self.clock.part("read"):
            opened = self.open()
        with self.clock.part("latency"):
            self.latency = self.measured(opened.arch, resume)
        limits = self.terms.resolve(profile(opened.arch), self.latency.present if self.latency else None)
        aims = self.aims(opened.arch, limits)
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
        leave_out_known_techniques(method, asked.recipe)
        run = asked.method, asked.out, asked.recipe.batch_size
        method, proxy = proxied(method, asked.proxy, opened.data, run, asked.say)
        settings = asked.settings(opened, limits, proxy)
        with Study(
            asked.out,
            settings,
            lambda: self.resolve(opened),
            resume=resume,
            command=asked.command,
            storage=asked.storage,
        ) as study:
            evaluator = self.evaluator(opened, study, proxy)
            self.threads = asked.placement.threads_in(study.settled, study.folder)
            found, best = self.search(method, evaluator, study)
            return self.finish(SearchOutcome.of(method, found, best), evaluator, study, limits)

    def search(self, method: Method, evaluator: Evaluator, study: Study) -> tuple[Found, Evidence | None]:
        """Search until the method or the time ends; what it ends with is trained on all data and has a baseline.

        Returns:
            All trials, and the best one.
        """
        asked, unasked = self.asked, list[Sequence[Candidate]]()

        def fits(found: Sequence[Evidence], batch: Sequence[Candidate]) -> int:
            count = asked.time.fits(found, batch) if asked.time is not None else len(batch)
            if asked.time is not None and not count:
                asked.say(asked.time.ended(found, batch))
                unasked.append(batch)
            return count

        with self.clock.part("search"), self.executor(evaluator, study) as executor:
            found = search(method, study, executor, asked.say, fits)
            best = method.best()
            if best is None:
                if asked.time is not None and unasked:
                    raise asked.time.too_short(found, unasked[0])
                return found, None
            missing = whole_trainings(best, found, asked.later_epochs)
            if not missing and unasked and (baseline := baseline_of(best, found)) is not None:
                missing = (baseline,)
            known = {evidence.trial: evidence.candidate for evidence in found}
            last = tuple(carried_out(missing, known, study, executor, asked.say))
            whole = next((e for e in last if e.candidate.role == "candidate"), best)
            return (*found, *last), whole if whole.usable else None

    # ------------------------------------------------------------------ before

    def open(self) -> LoadedModel:
        asked = self.asked
        opened = load_model_and_data(
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

    def checked(self, opened: LoadedModel) -> LoadedModel:
        """Freeze the channel groups that the network's own code does not let change."""
        found = check_execution(opened.arch)
        if found.fixed:
            reason = next(iter(found.fixed.values()))
            self.asked.say(f"{len(found.fixed)} channel groups stay as they are: {reason}")
        return replace(opened, arch=found.architecture)

    def measured(self, arch: Architecture, resume: bool) -> RunLatency | None:
        """Measure the latency where the budget limits it; a resumed run keeps what it measured."""
        folder = self.asked.out
        if resume:
            self.check_measured(folder)
        if not self.terms.measures:
            return None
        return latency_of(arch, folder, self.asked.say)

    def check_measured(self, folder: Path) -> None:
        """Refuse to change a limit on latency: the estimate was calibrated for the one that the run was started with.

        Raises:
            RunError: It is another one.
        """
        settings = read_json(folder / "run.json", RUN).get("settings")
        before = settings.get("budget") if isinstance(settings, dict) else None
        if not isinstance(before, list) or before == list(self.asked.budget):
            return
        if self.terms.measures or terms_of(before).measures:
            raise RunError(
                f"{folder}: a budget on latency cannot be changed when a run is resumed (it was {', '.join(before)}); "
                "start anew with another --out"
            )

    def aims(self, arch: Architecture, limits: Limits) -> Limits:
        """Show the limits, refuse what cannot be met, and return what the search is to keep to."""
        if self.latency is None:
            self.show(arch, limits, limits)
            check_feasible(limits, arch)
            return limits
        beyond, first = beyond_widths(self.asked.method), self.latency.aimed(limits)
        check_feasible(first.counted if beyond else first, arch)
        with self.clock.part("latency"):
            self.latency = self.latency.ready(limits, self.asked.divisor, beyond)
        aims = self.latency.aimed(limits)
        self.show(arch, limits, aims)
        return aims

    def show(self, arch: Architecture, limits: Limits, aims: Limits) -> None:
        costs = profile(arch)
        self.asked.say(f"{arch.source}: {costs.macs:,} MACs, {costs.params:,} parameters")
        for metric, (least, most) in feasible_range(arch, aims.estimates).items():
            if metric in MEASURED:
                reach = f"from about {human(least, metric)} to {human(most, metric)}"
            else:
                reach = f"from {least:,} to {most:,}"
            self.asked.say(f"feasible {metric}: {reach} by changing widths")
        self.asked.say(f"budget: {limits.describe() or 'none'}")

    def resolve(self, opened: LoadedModel) -> dict[str, Any]:
        """Choose precision and layout once, so that all trials are trained alike."""
        device = make_fabric("auto", "32-true").device
        chosen = resolve(opened.arch.model.to(device), opened.data, self.asked.recipe, device, None)
        settled: dict[str, Any] = {"precision": chosen.precision, "memory_format": chosen.memory_format}
        self.check_time(opened, settled)
        settled["threads"] = self.asked.placement.settled()
        return settled if self.latency is None else {**settled, "latency": self.latency.as_dict()}

    def check_time(self, opened: LoadedModel, settled: Mapping[str, Any]) -> None:
        """Refuse a time in which nothing can be trained."""
        asked = self.asked
        if asked.time is not None:
            with threads_of(asked.placement.settled()):
                epoch = epoch_seconds(opened.arch.model, opened.data, asked.recipe.updated(**settled))
            asked.time.check(epoch, asked.base_epochs, asked.later_epochs)

    def evaluator(self, opened: LoadedModel, study: Study, proxy: Proxy | None = None) -> Evaluator:
        """Return what evaluates candidates, from the weights that the run started with."""
        initial = study.folder / INITIAL
        if initial.is_file():
            load_weights(opened.arch.model, initial)
        else:
            save_weights(opened.arch.model, initial)
        if self.latency is not None:
            self.latency.keep_in(study.folder)
        if self.asked.proxy is not None and proxy is not None:
            self.asked.proxy.keep(proxy, study.folder)
        recipe = settled_recipe(self.asked.recipe, study.settled)
        return Evaluator(opened.arch, opened.data, recipe, study, self.asked.progress, self.asked.workers, proxy)

    @contextmanager
    def executor(self, evaluator: Evaluator, study: Study) -> Iterator[Executor]:
        """Start what works on the candidates; latency is among their costs where the budget limits it."""
        asked = self.asked
        initial = study.folder / INITIAL
        made = asked.placement.executor(evaluator, asked.model, study.folder, initial, self.threads, asked.say)
        try:
            yield made if self.latency is None else Completed(made, self.latency.completed)
        finally:
            made.close()

    # ------------------------------------------------------------------ after

    def finish(self, ended: SearchOutcome, evaluator: Evaluator, study: Study, limits: Limits) -> Result:
        """Prove, judge on the test part, and write the result's files."""
        old = load_result(study.folder)
        if old is not None:  # a finished run: the test part is not read again
            return Result(study.folder, ended.best, ended.baseline, ended.trials, old)
        with self.clock.part("proof"):
            proofs = [self.proof(trial, evaluator) for trial in (ended.baseline, ended.best)]
            times = self.latency.compare(proofs[0].arch, proofs[1].arch) if self.latency else None
            met = check_budget(proofs[1], limits, self.judged(times))
        with self.clock.part("test"), threads_of(self.threads):
            judged = [self.test(proof, evaluator) for proof in proofs]
        trials = (ended.baseline, ended.best)
        sides = [side(*of) for of in zip(trials, proofs, judged, strict=True)]
        if times is not None:
            for one, name in zip(sides, ("before", "after"), strict=True):
                one["latency"] = times.latencies[name].as_dict()
        content = self.content(ended, evaluator, study, limits, met) | {"baseline": sides[0], "result": sides[1]}
        if self.asked.objective:
            content["front"] = self.front(ended, evaluator, study, limits, content)
        plan = ended.best.candidate.plan
        write_text(study.folder / "plan.json", plan.to_json())
        save_weights(proofs[1].arch.model, study.folder / WEIGHTS)
        write_json(study.folder / NETWORKS, networks(proofs[0].arch, proofs[1].arch, self.latency))
        write_json(study.folder / "result.json", content)  # last: it says that the others are whole
        return Result(study.folder, ended.best, ended.baseline, ended.trials, content)

    def front(
        self, ended: SearchOutcome, evaluator: Evaluator, study: Study, limits: Limits, content: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Prove, judge and write the networks of a Pareto search."""
        with self.clock.part("front"), threads_of(self.threads):
            return write_front(
                study.folder,
                ended,
                self.asked.objective,
                content,
                limits,
                lambda trial: self.proof(trial, evaluator),
                lambda proof: self.test(proof, evaluator),
            )

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

    def content(
        self, ended: SearchOutcome, evaluator: Evaluator, study: Study, limits: Limits, met: dict[str, Any]
    ) -> dict[str, Any]:
        """Return everything of ``result.json`` but the two sides that are compared."""
        trials = [trial_entry(t) for t in ended.trials]
        spent = {f"trial {t.trial}": t.seconds for t in ended.trials}
        measured = {} if self.latency is None else {"latency": self.latency.summary()}
        return {
            "format": FORMAT,
            "version": 1,
            **study.settings,
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


def _recipe(trial: Evidence, evaluator: Evaluator) -> dict[str, Any]:
    """Return the recipe of a trial's last training."""
    changed = changed_recipe(evaluator.recipe, trial.candidate.recipe)
    return in_parts(changed, int(trial.probes.get(PROBE, 1))).model_dump(mode="json")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
