"""``optimize``: from a network, data and a budget to a proved result in a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from convwright.architecture import Architecture
from convwright.cost import profile
from convwright.cost.budget import MEASURED, Budget, Limits, check_feasible, feasible_range, human
from convwright.edits import Plan, check_execution
from convwright.edits.constraints import DivisorLike, odd_widths
from convwright.edits.surgery import check_copies
from convwright.errors import ConvwrightError, RecipeError, RunError, counted, did_you_mean
from convwright.methods import Candidate, Evidence, Method, method_named
from convwright.methods.options import checked_options
from convwright.runs.candidate_recipe import RATE, changed_recipe, leave_out_known_techniques, settled_recipe
from convwright.runs.config import FINETUNE, OptimizeOptions, RunConfig, documented, terms_of
from convwright.runs.directory.files import load_weights, save_weights, there, write_json
from convwright.runs.directory.result import Result, load_result
from convwright.runs.directory.study import WEIGHTS, Study, check_folder, read_settings
from convwright.runs.evaluate import Evaluator, precision_and_layout, reshaped
from convwright.runs.executors import Executor, threads_of
from convwright.runs.latency import RunLatency, latency_of
from convwright.runs.load import LoadedModel, load_model_and_data
from convwright.runs.loop import carried_out, search
from convwright.runs.memory import PROBE, in_parts
from convwright.runs.outcome import INITIAL, SearchOutcome, run_record, side, trained, write_front, write_result
from convwright.runs.prove import Proof, check_budget, check_promises, prove
from convwright.runs.proxy import proxied, whole_trainings
from convwright.runs.quantized import judged_int8
from convwright.runs.rewriting import FinalsInTime, WithoutBaseline, only_judged
from convwright.runs.time_budget import baseline_of, epoch_seconds
from convwright.runs.train import judged as as_record
from convwright.runs.verdict import by_class, verdict
from convwright.runs.weights_note import usage
from convwright.training import Metrics, Recipe
from convwright.training.data.normalisation import normalised
from convwright.training.data.proxy import Proxy
from convwright.training.data.resized import image_size, resized_images
from convwright.training.preflight import prepare
from convwright.training.progress import still
from convwright.training.techniques import Teacher

Found = tuple[Evidence, ...]


@documented
def optimize(
    model: nn.Module | str,
    data: Any,
    budget: str | Sequence[str] = (),
    method: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    recipe: Recipe | str | Path | None = None,
    **options: Unpack[OptimizeOptions],
) -> Result:
    """Redesign a network to a budget, and prove the result.

    Returns:
        The proved result; its files are in the run directory.

    Raises:
        ReadError: The network cannot be read.
        DataError: The data cannot be read, do not fit the network, or have less than a proxy was to have.
        BudgetError: The budget does not parse, cannot be met (before any training), or was not met. As
            `BrokenBudgetError` it has the written result where latency is over its limit or accuracy fell by more than
            `max_drop`; where counts are wrong, no result is written.
        RecipeError: The recipe is invalid, or has a technique that edits the network.
        RunError: The directory is damaged, in use, not empty, or was started with other settings.
    """
    _check_names("optimize", options)
    return _Job(RunConfig(model, data, budget, method, out, seed, recipe, **options)).run()


def compress(
    model: nn.Module | str,
    data: Any,
    budget: str | Sequence[str] = "macs<=50%",
    out: str | Path | None = None,
    seed: int = 0,
    recipe: Recipe | str | Path | None = None,
    **options: Unpack[OptimizeOptions],
) -> Result:
    """Make a trained network cheaper: cut what it misses least, repair it, fine-tune it, and prove the result.

    It is `optimize` with method ``saliency``, preset ``finetune`` and repair; all its options hold.

    Args:
        model: As for `optimize`; a module is taken as trained. A named network needs `weights` or `pretrained`.
        data: As for `optimize`.
        budget: As for `optimize`.
        out: As for `optimize`.
        seed: As for `optimize`.
        recipe: As for `optimize`; default: preset ``finetune``.
        options: As for `optimize`.

    Returns:
        The proved result; its files are in the run directory.

    Raises:
        ConvwrightError: The network has no trained weights; else as `optimize`.

    Examples:
        >>> import convwright as cw
        >>> result = cw.compress(model, "folder:photos", "macs<=50%")  # doctest: +SKIP
        >>> result.model, result.plan  # doctest: +SKIP
    """
    _check_names("compress", options)
    given = isinstance(model, nn.Module)
    if not (given or options.get("weights") is not None or options.get("pretrained")):
        raise ConvwrightError(
            f"compress begins with trained weights, and {model} has none: give weights (--weights FILE) or take those "
            "that come with it (--pretrained); optimize also trains new networks"
        )
    options = {"trained": given, **options}
    return _Job(RunConfig(model, data, budget, "saliency", out, seed, recipe, **options)).run()


def _check_names(function: str, options: OptimizeOptions) -> None:
    for name in options.keys() - OptimizeOptions.__annotations__.keys():
        hint = did_you_mean(name, [each.name for each in fields(RunConfig)], 1)
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{hint}")


class _Job:
    """One call of `optimize`: its parts in order."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}  # by part of the work
        self.terms = Budget(())
        self.latency: RunLatency | None = None  # only where the budget limits it
        self.divisor: DivisorLike = config.divisor
        self.threads = 1

    @contextmanager
    def part(self, name: str, doing: str = "") -> Iterator[None]:
        """Add the seconds spent inside to a part of the work; say what it is `doing`, and that it still is."""
        start = time.perf_counter()
        if doing and name != "read":  # wrong input is one line
            self.config.tell(doing)
        with still(doing, self.config.tell) if doing else nullcontext():
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def run(self) -> Result:
        config = self.config
        config.check()
        self.terms = config.terms
        check_folder(config.folder, config.resume)
        if config.resume and config.divisor == "auto":  # whatever the run was started with
            stated = read_settings(config.folder)["settings"].get("divisor", 1)
            self.config = config = replace(config, divisor=stated)
        with self.part("read", "reading the network and the data"):
            loaded = self.open()
        with self.part("latency", "measuring the latency" if self.terms.measures else ""):
            self.latency = self.measured(loaded.arch)
        self.divisor = config.divisor if self.latency is None else self.latency.divisor(config.divisor)
        limits = self.terms.resolve(profile(loaded.arch), self.latency.present if self.latency else None)
        aims = self.aims(loaded.arch, limits)
        name, options = config.search
        make: Callable[..., Method] = method_named(name)
        with self.part("plan", "analysing the network and planning the search"):
            lengths = {"epochs": config.base_epochs(loaded.trained), "tune_epochs": config.later_epochs}
            own = checked_options(name, options)
            method = make(loaded.arch, aims, **lengths, seed=config.seed, divisor=self.divisor, **own)
        leave_out_known_techniques(method, config.training)
        if not config.baseline:
            method = WithoutBaseline(method, given=loaded.trained)
        run = name, config.folder, config.training.batch_size
        method, proxy = proxied(method, config.proxy, loaded.data, run, config.tell)
        if self.latency is not None:
            method = FinalsInTime(method, self.latency, limits, self.divisor)
        settings = config.settings(loaded, limits, proxy)
        how: dict[str, Any] = {"resume": config.resume, "command": config.command, "storage": config.storage}
        with Study(config.folder, settings, lambda: self.resolve(loaded), **how) as study:
            evaluator = self.evaluator(loaded, study, proxy)
            self.threads = config.placement.threads_in(study.settled, study.folder)
            found, best = self.search(method, evaluator, study)
            result = self.finish(SearchOutcome.of(method, found, best), evaluator, study, limits)
            check_promises(result, config.max_drop)
            return result

    def search(self, method: Method, evaluator: Evaluator, study: Study) -> tuple[Found, Evidence | None]:
        """Return all trials and the best one, which is trained on all data and has a baseline."""
        config, unasked = self.config, list[Sequence[Candidate]]()

        def fits(found: Sequence[Evidence], batch: Sequence[Candidate]) -> int:
            count = config.time_budget.fits(found, batch) if config.time_budget is not None else len(batch)
            if config.time_budget is not None and not count:
                config.tell(config.time_budget.ended(found, batch))
                unasked.append(batch)
            return count

        with self.part("search"), self.executor(evaluator, study) as executor:
            # Latency is among the costs where the budget limits it.
            complete = None if self.latency is None else self.latency.completed
            found = search(method, study, executor, config.tell, fits, complete)
            best = method.best()
            if best is None:
                if config.time_budget is not None and unasked:
                    raise config.time_budget.too_short(found, unasked[0])
                return found, None
            missing = whole_trainings(best, found, config.later_epochs)
            if not missing and unasked and (baseline := baseline_of(best, found)) is not None:
                missing = (baseline,)
            if not config.baseline:
                missing = tuple(only_judged(candidate, found) for candidate in missing)
            known = {evidence.trial: evidence.candidate for evidence in found}
            last = tuple(carried_out(missing, known, study, executor, config.tell, complete))
            whole = next((e for e in last if e.candidate.role == "candidate"), best)
            return (*found, *last), whole if whole.usable else None

    def open(self) -> LoadedModel:
        config, recipe = self.config, self.config.training
        if config.resume:
            recipe = settled_recipe(recipe, read_settings(config.folder)["settled"])
        names = ("input_shape", "data_dir", "seed", "weights", "pretrained", "trained")
        given = {name: getattr(config, name) for name in names}
        loaded = load_model_and_data(config.model, config.data, recipe=recipe, settled=config.resume, **given)
        if config.finetunes:
            config.tell(f"trained weights are fine-tuned: recipe {FINETUNE}, {counted(config.later_epochs, 'epoch')}")
        elif loaded.trained and config.tune_epochs is None:
            later = counted(config.later_epochs, "epoch")
            whole = config.training.epochs
            config.tell(f"later trainings have {later}, half of the recipe's {whole}; tune_epochs gives another number")
        check_copies(loaded.arch.model)
        self.check_recipe(loaded)
        found = check_execution(loaded.arch)  # freezes groups that the network's own code does not let change
        if found.fixed:
            reason = next(iter(found.fixed.values()))
            stay = "stay as they are" if len(found.fixed) > 1 else "stays as it is"
            config.tell(f"{counted(len(found.fixed), 'channel group')} {stay}: {reason}")
        return replace(loaded, arch=config.constrained.bound(found.architecture))

    def check_recipe(self, loaded: LoadedModel) -> None:
        """Refuse a recipe that the shortest trainings would stumble over, one after the other."""
        lengths = {self.config.base_epochs(loaded.trained), self.config.later_epochs} - {0}
        kind = method_named(self.config.search[0])
        if kind.ranks and kind.beyond_widths:  # auto and pareto: their races begin with so little
            lengths.add(1)
        teacher = Teacher(loaded.arch.model) if loaded.trained or self.config.base_epochs(loaded.trained) else None
        for epochs in sorted(lengths):
            try:
                prepare(loaded.arch.model, loaded.data, self.config.training.updated(epochs=epochs), teacher)
            except RecipeError as error:
                raise RecipeError(f"trials of {counted(epochs, 'epoch')}: {error}") from error

    def measured(self, arch: Architecture) -> RunLatency | None:
        """Measure the latency where the budget limits it; a resumed run keeps what it measured."""
        folder = self.config.folder
        now = list(self.config.budgets)
        before = read_settings(folder)["settings"].get("budget", now) if self.config.resume else now
        if before != now and (self.terms.measures or terms_of(before).measures):
            raise RunError(
                f"{folder}: a budget on latency cannot be changed when a run is resumed (it was {', '.join(before)}); "
                "start anew with another --out"
            )
        return latency_of(arch, folder, self.config.tell, self.config.target) if self.terms.measures else None

    def aims(self, arch: Architecture, limits: Limits) -> Limits:
        """Show the limits, refuse what cannot be met, and return what the search is to keep to."""
        if self.latency is None:
            self.show(arch, limits, limits)
            check_feasible(limits, arch)
            return limits
        beyond, first = method_named(self.config.search[0]).beyond_widths, self.latency.aimed(limits)
        check_feasible(first.counted if beyond else first, arch)
        with self.part("latency", "measuring the latency of narrower networks"):
            self.latency = self.latency.ready(limits, self.divisor, beyond)
        aims = self.latency.aimed(limits)
        self.show(arch, limits, aims)
        return aims

    def show(self, arch: Architecture, limits: Limits, aims: Limits) -> None:
        costs = profile(arch)
        self.config.tell(f"{arch.source}: {costs.macs:,} MACs, {costs.params:,} parameters")
        for metric, ends in feasible_range(arch, aims.estimates).items():
            about = "about " * (metric in MEASURED)
            least, most = (human(end, metric) if about else f"{end:,}" for end in ends)
            self.config.tell(f"feasible {metric}: from {about}{least} to {most} by changing widths")
        self.config.tell(f"budget: {limits.describe() or 'none'}")
        for term in self.terms.terms:
            if term.relative and term.limit > 1:
                self.config.tell(f"{term} is above the present cost: the network meets it as it is; meant to grow?")

    def resolve(self, loaded: LoadedModel) -> dict[str, Any]:
        """Choose precision and layout once; refuse a time in which nothing can be trained."""
        config, threads = self.config, self.config.placement.settled()
        data = normalised(loaded.data, loaded.recipe.normalisation, loaded.arch.model)
        with self.part("settings", "choosing precision and layout"):
            settled = precision_and_layout(loaded.arch, data, config.training)
        if "lr" in settled:
            config.tell(f"the rate test found lr={settled['lr']:g}")
        if config.time_budget is not None:
            with threads_of(threads), self.part("settings", "timing an epoch"):
                epoch = epoch_seconds(loaded.arch.model, data, config.training.updated(**settled))
            config.time_budget.check(epoch, config.base_epochs(loaded.trained), config.later_epochs)
        settled["threads"] = threads
        for line in loaded.remarks:
            config.tell(line)
        if loaded.taken is not None:
            settled["weights_taken"] = str(loaded.taken)
            if not loaded.trained:
                length = counted(config.base_epochs(trained=False), "epoch")
                config.tell(f"what is drawn anew is untrained: the untouched network is trained for {length} first")
        repairs = config.repairs(loaded.trained)
        settled |= {"repairs": {"merge": repairs.merge, "refit": repairs.refit}, **usage(data)}
        return settled if self.latency is None else {**settled, "latency": self.latency.as_dict()}

    def evaluator(self, loaded: LoadedModel, study: Study, proxy: Proxy | None = None) -> Evaluator:
        initial = study.folder / INITIAL
        if there(initial):
            load_weights(loaded.arch.model, initial)
        elif there(study.folder / "trials"):
            raise RunError(f"{initial}: missing, the run started from these weights; start anew in another folder")
        else:
            save_weights(loaded.arch.model, initial)
        if self.latency is not None:
            self.latency.keep_in(study.folder)
        if self.config.proxy is not None and proxy is not None:
            self.config.proxy.keep(proxy, study.folder)
        recipe = settled_recipe(self.config.training, study.settled)
        data = normalised(loaded.data, recipe.normalisation, loaded.arch.model)
        config, whole = self.config, (loaded.arch, data, recipe, study)
        how = config.progress, config.workers, proxy, config.repairs(loaded.trained, study.settled.get("repairs", {}))
        return Evaluator(*whole, *how, say=config.tell, trained=loaded.trained)

    @contextmanager
    def executor(self, evaluator: Evaluator, study: Study) -> Iterator[Executor]:
        config = self.config
        initial = study.folder / INITIAL
        made = config.placement.executor(evaluator, config.model, study.folder, initial, self.threads, config.tell)
        try:
            yield made
        finally:
            made.close()

    def finish(self, outcome: SearchOutcome, evaluator: Evaluator, study: Study, limits: Limits) -> Result:
        """Return the result; a finished run is proved again only where it was too slow when it was measured."""
        content = load_result(study.folder)
        if content is not None:
            check_files(evaluator.arch, outcome.best.candidate.plan, study.folder, content)
        if content is None or not all(values["met"] for values in content["budget_met"].values()):
            content = self.proved(outcome, evaluator, study, limits, content)
        return Result(study.folder, outcome.best, outcome.baseline, outcome.trials, content, evaluator.arch)

    def proved(
        self, outcome: SearchOutcome, evaluator: Evaluator, study: Study, limits: Limits, old: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Prove, judge on the test part, and write the result's files; `old` was judged already, and is only proved."""

        def proved(trial: Evidence) -> Proof:
            return prove(evaluator.arch, trial.candidate.plan, study.weights(trial.trial))

        def judged(proof: Proof) -> Metrics:
            images = evaluator.data.test if has_test else evaluator.data.val
            assert images is not None
            return evaluator.judge(proof.arch.model, resized_images(images, image_size(proof.arch)))

        has_test = evaluator.data.has_test
        trials = (outcome.baseline, outcome.best)
        with self.part("proof", "proving the result"):
            proofs = [proved(trial) for trial in trials]
            times, latency = self.timed(*proofs)
            met = check_budget(proofs[1], limits, latency)
        if old is not None:
            content = old | {"budget_met": met}
            for name, side_times in times.items():
                content[name]["latency"] = side_times
            write_json(study.folder / "result.json", content)
            return content
        with self.part("test"), threads_of(self.threads):
            metrics = [judged(proof) for proof in proofs]
        tests = metrics if has_test else (None, None)
        content = self.content(outcome, evaluator, study, met)
        for name, trial, proof, test in zip(("baseline", "result"), trials, proofs, tests, strict=True):
            training = trained(study.trial_folder(trial.trial), len(evaluator.data.train))
            latencies = {"latency": times[name]} if times else {}
            content[name] = {**side(trial, proof, test), "train": training, **latencies, **self.int8(evaluator, proof)}
        if self.config.costs:
            with self.part("front"), threads_of(self.threads):
                last = judged if has_test else lambda proof: None
                content["front"] = write_front(study.folder, outcome, self.config.costs, content, limits, proved, last)
        part = "test" if has_test else "validation"
        odd = odd_widths(proofs[0].arch, proofs[1].arch)
        content |= {"odd_widths": odd} if odd else {}
        content |= verdict(content, by_class(part, evaluator.data.class_names, *metrics))
        write_result(study.folder, outcome, proofs, content, self.latency)
        return content

    def timed(self, before: Proof, after: Proof) -> tuple[dict[str, Any], dict[str, Any] | None]:
        limit = next((term for term in self.terms.terms if term.metric == "latency"), None)
        if self.latency is None or limit is None:
            return {}, None
        times, judged = self.latency.proved(limit, before.arch, after.arch)
        return {"baseline": times.latencies["before"].as_dict(), "result": times.latencies["after"].as_dict()}, judged

    def int8(self, evaluator: Evaluator, proof: Proof) -> dict[str, Any]:
        """Judge a network in int8 where the budget is on that."""
        target = self.latency.target if self.latency is not None else None
        if target is None or not target.int8:
            return {}
        side = image_size(proof.arch)
        data, part = evaluator.data, evaluator.data.test if evaluator.data.has_test else evaluator.data.val
        assert part is not None
        with self.part("int8", f"judging it in int8 on {target}"):
            both = resized_images(data.train, side), resized_images(part, side)
            return {"int8": as_record(judged_int8(target, proof.arch, *both))}

    def content(
        self, outcome: SearchOutcome, evaluator: Evaluator, study: Study, met: dict[str, Any]
    ) -> dict[str, Any]:
        """Return everything of ``result.json`` but the two sides that are compared."""
        measured = {} if self.latency is None else {"latency": self.latency.summary()}
        sides = {"": outcome.best, "baseline_": outcome.baseline}
        recipes = {f"{name}trained_with": _recipe(trial, evaluator) for name, trial in sides.items()}
        return run_record(study, outcome, met, self.seconds, {**measured, **usage(evaluator.data), **recipes})


def check_files(arch: Architecture, plan: Plan, folder: Path, result: Mapping[str, Any]) -> None:
    """See whether plan and weights of a finished run are there, and are those of its result.

    Raises:
        ConvwrightError: One is missing or damaged; names it.
    """
    remedy = f"remove {folder / 'result.json'}, and --resume writes the result again from the weights of its trials"
    folders = [folder, *(folder / entry["folder"] for entry in result.get("front", ()) if "folder" in entry)]
    for file in (each / name for each in folders for name in ("plan.json", WEIGHTS)):
        if not file.is_file():
            raise RunError(f"{file}: missing from a finished run; {remedy}")
    try:
        load_weights(reshaped(arch, plan).model, folder / WEIGHTS)
        same = Plan.load(folder / "plan.json").edits == Plan.from_json(plan.to_json()).edits  # lists for tuples
    except ConvwrightError as error:
        raise RunError(f"{str(error).rstrip('.')}; {remedy}") from error
    if not same:
        raise RunError(f"{folder / 'plan.json'}: another plan than that of the result; {remedy}")


def _recipe(trial: Evidence, evaluator: Evaluator) -> dict[str, Any]:
    changed = changed_recipe(evaluator.recipe, trial.candidate.recipe)
    changed = changed.updated(lr=trial.probes.get(RATE, changed.lr))
    return in_parts(changed, int(trial.probes.get(PROBE, 1))).model_dump(mode="json")
