"""A search around the user's own training: `Search` hands out candidates and is told what they are worth.

Several processes may share one search, on one run directory. Each has the whole method and tells it the same scores in
the same order, so all ask for the same candidates, whoever finishes first. A process holds a trial by a lease: a file
in the trial's folder whose age is that of the last heartbeat.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.cost import profile
from convwright.cost.budget import check_feasible, costs_of
from convwright.devices import device_of
from convwright.edits import Plan, check_execution
from convwright.edits.constraints import Constraints
from convwright.edits.importance import IMPORTANCE
from convwright.edits.surgery import check_copies
from convwright.errors import BudgetError, ConvwrightError, EditError, RunError
from convwright.methods import Candidate, Evidence, method_named
from convwright.methods.options import checked_options
from convwright.ranking import Metric
from convwright.runs.config import default_folder, digest_of, terms_of
from convwright.runs.directory.files import LOCK, load_weights, save_weights, there, write_text
from convwright.runs.directory.result import Result
from convwright.runs.directory.study import Study
from convwright.runs.evaluate import Evaluator
from convwright.runs.executors import lost
from convwright.runs.executors.executor import ATTEMPTS
from convwright.runs.executors.executor import Task as WorkTask
from convwright.runs.executors.worker import WorkerTask
from convwright.runs.loop import Say, say_decisions, words_of
from convwright.runs.outcome import INITIAL, SearchOutcome, run_record, side, write_result
from convwright.runs.prove import check_budget, prove
from convwright.runs.repairing import Repairs
from convwright.runs.rewriting import WithoutBaseline
from convwright.training import Recipe, Task
from convwright.training.tasks.base import Batch

_RECIPE = Recipe(precision="fp32", memory_format="contiguous")
_UNSEEN = "bundles"  # probes that look into a training
_LEASE = "lease"  # in a trial's folder: its owner, and how many it has had
_PATIENCE = 300.0  # seconds that a process waits while another one writes to the record
_POLL = 5.0  # seconds between two looks at what other processes have finished


@dataclass(frozen=True)
class Lease:
    """The right to a trial of the `owner` that `file` names, as long as it is young enough."""

    file: Path
    owner: str
    holders: int

    @classmethod
    def taken(cls, folder: Path, owner: str, now: float, seconds: float) -> Lease | None:
        """Take a trial; None where another one's lease has not ended."""
        file, holders = folder / _LEASE, 0
        if file.is_file():
            if now - file.stat().st_mtime <= seconds:
                return None
            holders = int(file.read_text(encoding="utf-8").split()[1])
        write_text(file, f"{owner} {holders + 1}\n")
        return cls(file, owner, holders + 1)

    @property
    def held(self) -> bool:
        """Whether nobody else has taken the trial since."""
        return self.file.is_file() and self.file.read_text(encoding="utf-8").startswith(self.owner)

    def beat(self) -> bool:
        """Keep it, and return whether it was still held."""
        if held := self.held:
            os.utime(self.file)
        return held


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate to be trained, as `Search.ask` hands it out.

    Attributes:
        number: Its number in the search.
        plan: The edits from the untouched network to this one.
        epochs: For how many epochs to train it; 0: it is only judged.
        seed: Of the training.
        folder: Its folder in the run directory, for what the training leaves behind.
        candidate: All that the method asks for.
        arch: The network as it was read, with the weights that it inherits.
        costs: Of the network, by metric.
        shapes: Of its weights.
        lease: This process's right to it.
        evaluator: Builds and observes networks.
        reestimated: Samples on which batch norm was re-estimated after the cut.
        begun: When, by `time.perf_counter`.
    """

    number: int
    plan: Plan = field(repr=False)
    epochs: int
    seed: int
    folder: Path
    candidate: Candidate = field(repr=False)
    arch: Architecture = field(repr=False)
    costs: Mapping[str, int] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    lease: Lease = field(repr=False)
    evaluator: Evaluator = field(repr=False)
    reestimated: int = 0
    begun: float = field(default_factory=time.perf_counter, repr=False)

    def model(self) -> nn.Module:
        """Return the edited network, of the user's class and in training mode: to be trained in place."""
        return self.arch.model

    def heartbeat(self) -> None:
        """Say that this process is alive, which it does by itself, too.

        Raises:
            RunError: The lease ended, as when a machine sleeps, and another process took the trial.
        """
        if not self.lease.beat():
            raise RunError(f"trial {self.number}: its lease was lost, another process has it now; ask for the next one")


class _OwnBatches(Task):
    """The user's batches and loss, for what repairs a cut network and scores its channels."""

    name, parts = "batches", ("train",)

    def __init__(self, arch: Architecture, batches: Iterable[Batch], loss: Callable[[Any, Any], Tensor] | None) -> None:
        self.arch, self.of_outputs = arch, loss
        self.given = list(batches) if iter(batches) is batches else batches

    def batches(self, part: str) -> Iterable[Batch]:
        return self.given

    def sizes(self, part: str, batch_size: int) -> list[int]:
        return super().sizes(part, batch_size) if self.given else []

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert self.of_outputs is not None  # checked before any training
        return self.of_outputs(self.forward(model, batch[0]), batch[1])

    def example_inputs(self) -> Any:
        inputs = self.arch.inputs
        return self.arch.example_input if self.arch.given is None else inputs.args or dict(inputs.kwargs)


class Search:
    """A search for a better network by candidates that you train: ask, train, tell.

    Made again with the same arguments and directory, it goes on where it was, and several processes share it.

    Args:
        arch: The network, as `convwright.read` gives it, with its weights; it stays as it is.
        budget: As for `optimize`, but not of latency.
        method: Any but ``conflicts``, which watches trainings. ``saliency``, and ``auto`` where `epochs` is 0, need
            `batches` and `loss`. Techniques of a recipe are not tried.
        out: Run directory, on a file system that all processes see.
        storage: As for `optimize`.
        higher_is_better: Whether a higher score is better; if not, scores are recorded with the other sign.
        epochs: Of the first training of the untouched network; 0 where it comes trained.
        tune_epochs: Of every later training.
        seed: Of all choices and trainings.
        divisor: As for `optimize`.
        constraints: As for `optimize`.
        options: Options of the method by name.
        baseline: Whether the untouched network is trained on for as long as the result.
        batches: Calibration batches (inputs, targets), the same at each pass: for saliency, and for batch norm where an
            edit changed the function.
        loss: Of outputs and targets, for saliency.
        lease: Seconds after its last heartbeat until the trial of a process is given to another one.
        say: Called with lines for a person; None: they go to standard error.
        command: Command line, for the record.

    Raises:
        ConvwrightError: An argument is wrong, the budget cannot be met, or the method needs what is not there.
        RunError: The directory holds another search, or something else.
    """

    def __init__(
        self,
        arch: Architecture,
        budget: str | Sequence[str],
        method: str = "auto",
        out: str | Path | None = None,
        *,
        storage: str | None = None,
        higher_is_better: bool = True,
        epochs: int = 10,
        tune_epochs: int = 5,
        seed: int = 0,
        divisor: int | Literal["auto"] = "auto",
        constraints: Constraints | Mapping[str, Any] | str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        baseline: bool = True,
        batches: Iterable[Batch] = (),
        loss: Callable[[Any, Any], Tensor] | None = None,
        lease: float = 60.0,
        say: Say | None = None,
        command: str = "",
    ) -> None:
        if not isinstance(arch, Architecture):
            raise ConvwrightError(f"Search takes what cw.read returns, not {type(arch).__name__}; give cw.read(...)")
        if not lease > 0:
            raise ConvwrightError(f"lease={lease} must be seconds above 0, such as 60")
        self.folder = default_folder(arch.source, budget) if out is None else Path(out)
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        # A copy that knows of no earlier edits: plans begin here.
        arch = replace(arch, model=copy.deepcopy(arch.model), changes=(), applied=None)
        check_copies(arch.model)
        self.arch = (bound := Constraints.of(constraints)).bound(check_execution(arch).architecture)
        budgets, own = [budget] if isinstance(budget, str) else list(budget), dict(options or {})
        if (terms := terms_of(budgets)).measures:
            raise BudgetError("only `optimize` keeps a budget on latency; limit macs, params, activations or weights")
        self.limits = terms.resolve(profile(self.arch))
        check_feasible(self.limits, self.arch)
        lengths: dict[str, Any] = {"epochs": epochs, "tune_epochs": tune_epochs, "seed": seed, "divisor": divisor}
        made = method_named(method)(self.arch, self.limits, **lengths, **checked_options(method, own))
        made.without_techniques(lambda recipe: True)  # the recipe is the user's
        self.method = made if baseline else WithoutBaseline(made, given=not epochs)
        self.lease, self.metric = float(lease), Metric("score", higher_is_better, unit="")
        self._task, given = _OwnBatches(self.arch, batches, loss), batches != ()
        self._repairs = Repairs(given and not epochs, given and not epochs, given)
        self._check_probes(method, given and loss is not None)
        self.settings = {
            "model": arch.source,
            "architecture": digest_of(self.arch),
            "data": "a training loop of your own",
            "budget": budgets,
            "limits": dict(self.limits.limits),
            "method": method,
            "recipe": {},
            **lengths,
            **self.metric.settings(),
            **({"method_options": own} if own else {}),
            **({"constraints": bound.settings()} if bound else {}),
            **({} if baseline else {"baseline_trained": False}),
        }
        self._asked: dict[int, Candidate] = {}
        self._batch: tuple[int, ...] = ()  # asked for, and not told to the method yet
        self._claimed: tuple[WorkerTask, Lease] | None = None
        self._found: list[Evidence] = []
        self._said = 0
        self._trials: dict[int, Trial] = {}  # that this process has
        self._owner, self._leases, stop = uuid.uuid4().hex, dict[int, Lease](), threading.Event()
        self._study = Study(self.folder, self.settings, command=command, storage=storage, join=_PATIENCE)
        weakref.finalize(self, _let_go, self._leases, stop, self._study, os.getpid())  # at the end of the process, too
        threading.Thread(target=_beat, args=(self._leases, stop, self.lease / 4), daemon=True).start()
        with self._study.turn():
            if there(initial := self.folder / INITIAL):
                load_weights(self.arch.model, initial)
            else:
                save_weights(self.arch.model, initial)

    def ask(self) -> Trial | None:
        """Return the next trial to train; None where the search is finished.

        It waits where everything that is left is being trained by other processes.

        Raises:
            RunError: All that is left was handed out to this process, and it has told nothing of it.
        """
        said = False
        for number in [number for number, lease in self._leases.items() if not lease.held]:
            self._forget(number)
        while left := self._advanced(claim=True):
            if self._claimed is not None:
                if (trial := self._built(*self._claimed)) is not None:
                    return trial
                continue
            if all(number in self._trials for number in left):
                raise RunError(f"{_named(left)} was handed out; tell it or fail it before you ask for more")
            gc.collect()  # a search that nobody uses any more, as in a notebook, gives its trials back
            if not said:
                self.say(f"waiting for {_named(left)} of other processes")
            said = True
            time.sleep(min(_POLL, self.lease / 4))
        return None

    def tell(self, trial: Trial, score: float, model: nn.Module | None = None, *, stderr: float = 0.0) -> None:
        """Record what a trial is worth, with its weights: other trials inherit them.

        Args:
            trial: As `ask` returned it.
            score: On validation data.
            model: The trained network, where it is not the very object that ``trial.model()`` returned.
            stderr: Standard error of the score: what differs by less is noise to a method.

        Raises:
            RunError: The score is no finite number, the network another one, the trial is not this search's, was told
                already, or its lease was lost.
        """
        self._check(trial)
        value, stderr = number_of(score, f"trial {trial.number}: its score"), number_of(stderr, "stderr")
        trained = trial.model() if model is None else model
        if other := dict(_shapes(trained).items() ^ trial.shapes.items()):
            raise RunError(
                f"trial {trial.number}: the model told is another network ({min(other)}); tell what trial.model() "
                "returned, trained, without what was wrapped around it, such as model.module"
            )
        if broken := next((name for name, t in trained.state_dict().items() if t.isnan().any()), None):
            raise RunError(f"trial {trial.number}: {broken} of its network holds NaN; tell that the trial failed")
        probes = tuple(name for name in trial.candidate.probes if not name.startswith(_UNSEEN))
        found = trial.evaluator.looked(trained, self._task, replace(trial.candidate, probes=probes), _RECIPE)
        what = trial.candidate, trial.number, self.metric.score(value), stderr, trial.costs, found
        self._finish(trial, Evidence(*what, reestimated=trial.reestimated, metric=self.metric), trained)
        self.say(f"trial {trial.number}: score {value:g}")

    def fail(self, trial: Trial, why: str) -> None:
        """Record that a trial failed; the search goes on without it.

        Raises:
            RunError: As `tell`, of the trial.
        """
        self._check(trial)
        self._finish(trial, _failed(trial.number, trial.candidate, why))
        self.say(f"trial {trial.number}: failed: {why}")

    def result(self) -> Result:
        """Prove the best network so far, write it into the run directory, and return it.

        Raises:
            RunError: Nothing that meets the budget, or no untouched network to compare it with, was told yet.
            BrokenBudgetError: The network breaks the budget when it is counted again.
        """
        left, best = self._advanced(claim=False), self.method.best()
        if left and best is None:
            raise RunError(f"{self.folder}: no result yet; go on with ask and tell, {_named(left)} comes next")
        outcome = SearchOutcome.of(self.method, tuple(self._found), best)
        with self._study.turn() as study:
            self._said = say_decisions(self.method, self._said, study, self.say)
        trials = outcome.baseline, outcome.best
        proofs = [prove(self.arch, each.candidate.plan, study.weights(each.trial)) for each in trials]
        sides = [side(each, proof, None) for each, proof in zip(trials, proofs, strict=True)]
        content = run_record(study, outcome, check_budget(proofs[1], self.limits), {}, {"trained_with": {}})
        content |= {"baseline": sides[0], "result": sides[1], "classes": None, "warnings": []}
        with self._study.turn():
            write_result(self.folder, outcome, proofs, content)
        return Result(self.folder, outcome.best, outcome.baseline, outcome.trials, content, self.arch)

    # ------------------------------------------------------------------ the record

    def _advanced(self, claim: bool) -> tuple[int, ...]:
        """Tell the method, in order, what is finished; return what is left of the present batch, and `claim` one."""
        while True:
            if not self._batch:
                batch = self.method.ask()
                self._batch = tuple(range(len(self._asked), len(self._asked) + len(batch)))
                self._asked.update(zip(self._batch, batch, strict=True))
            if not self._batch:
                return ()
            with self._study.turn() as study:
                self._said = say_decisions(self.method, self._said, study, self.say)
                for number, candidate in self._asked.items():
                    study.enter(number, candidate)
                told = [study.finished(number, self._asked[number]) for number in self._batch]
                left = tuple(n for n, evidence in zip(self._batch, told, strict=True) if evidence is None)
                self._claimed = self._claim(study, left) if claim else None
            if left:
                return left
            for evidence in filter(None, told):
                self.method.tell(evidence)
                self._found.append(evidence)
            self._batch = ()

    def _claim(self, study: Study, left: Sequence[int]) -> tuple[WorkerTask, Lease] | None:
        """Take the first trial that nobody has; one that ended its process each time has failed."""
        os.utime(study.folder / LOCK)
        now = (study.folder / LOCK).stat().st_mtime  # by the clock that stamps leases, whichever machine's it is
        for number in left:
            task, folder = WorkTask(number, self._asked[number], self._asked), study.trial_folder(number)
            lease = None if number in self._trials else Lease.taken(folder, self._owner, now, self.lease)
            if lease is not None and lease.holders <= ATTEMPTS:
                self._leases[number] = lease
                return WorkerTask.of(task, study.trial_folder), lease
            if lease is not None:
                study.finish(lost(task, "its process ended without a word"))
        return None

    def _built(self, task: WorkerTask, lease: Lease) -> Trial | None:
        """Build the network of a trial; None where that cannot be: it has failed then."""
        number, candidate, parents = task.number, self._asked[task.number], task.parents
        again = f", after {lease.holders - 1} that ended without a word" if lease.holders > 1 else ""
        self.say(f"trial {number}: {words_of(candidate)}{again}")
        evaluator = Evaluator(self.arch, self._task, _RECIPE, task, repairs=self._repairs)
        try:
            arch = evaluator.build(candidate, parents)
        except EditError as error:
            with self._study.turn() as study:
                study.finish(_failed(number, candidate, str(error)))
            self._forget(number)
            return None
        costs, device = costs_of(profile(arch)), device_of(arch.model)
        seen = evaluator.started(arch, self._task, number, candidate, parents).images
        arch.model.to(device).train()
        what = candidate.plan, candidate.epochs, candidate.seed, task.trial_folder(number), candidate, arch
        self._trials[number] = Trial(number, *what, costs, _shapes(arch.model), lease, evaluator, seen)
        return self._trials[number]

    def _check(self, trial: Trial) -> None:
        if not isinstance(trial, Trial):
            raise RunError(f"{self.folder}: {trial!r} is no trial; tell what search.ask() returned")
        if self._trials.get(trial.number) is not trial:
            was = "was told already" if trial.lease.owner == self._owner else "is another search's"
            raise RunError(f"trial {trial.number} {was}; tell each trial once, to the search that handed it out")

    def _finish(self, trial: Trial, evidence: Evidence, model: nn.Module | None = None) -> None:
        with self._study.turn() as study:
            trial.heartbeat()
            if model is not None:
                save_weights(model, study.weights(trial.number))
            study.finish(replace(evidence, seconds=time.perf_counter() - trial.begun))
            trial.lease.file.unlink()
        self._forget(trial.number)

    def _forget(self, number: int) -> None:
        self._leases.pop(number, None)
        self._trials.pop(number, None)

    def _check_probes(self, method: str, scored: bool) -> None:
        """Refuse, before any training, a method that wants observed what cannot be."""
        for name in sorted({name for candidate in self.method.ask() for name in candidate.probes}):
            if name.startswith(_UNSEEN) and method not in ("auto", "pareto"):  # these do without
                raise ConvwrightError(
                    f"method {method} watches trainings (probe {name}), which are yours here; take another method"
                )
            kind = name.partition("saliency-")[2]
            if name.startswith(("saliency", "block-losses")) and kind not in IMPORTANCE and not scored:
                raise ConvwrightError(
                    f"method {method} scores channels of the trained network on your data: give Search "
                    "batches=[(inputs, targets), ...] and loss=function(outputs, targets)"
                )


def number_of(value: object, what: str) -> float:
    """Return a finite number.

    Raises:
        RunError: It is none; begins with `what`.
    """
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise RunError(f"{what} is {value!r}, which is no finite number; tell a number, or that the trial failed")
    return number


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _failed(number: int, candidate: Candidate, why: str) -> Evidence:
    return Evidence(candidate, number, math.nan, 0.0, {}, status="failed", message=" ".join(why.split()))


def _named(numbers: Sequence[int]) -> str:
    return f"trial{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _beat(leases: Mapping[int, Lease], stop: threading.Event, every: float) -> None:
    """Keep leases as long as this process lives; it holds on to no search."""
    while not stop.wait(every):
        for lease in tuple(leases.values()):
            with suppress(OSError):  # the next heartbeat of the trial itself tells of what is lost
                lease.beat()


def _let_go(leases: Mapping[int, Lease], stop: threading.Event, study: Study, process: int) -> None:
    """Give back the trials of a search that ends, by Ctrl-C, too; not where a copy of it ends in a forked process."""
    stop.set()
    if os.getpid() != process:
        return
    for lease in tuple(leases.values()):
        with suppress(OSError):
            if lease.held:
                lease.file.unlink()
    with study:
        pass
