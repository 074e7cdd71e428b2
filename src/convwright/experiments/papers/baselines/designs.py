"""What the rows of ``rivals`` are made of: searches whose weights are kept, and trainings that spend what is left."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import optuna
import torch
from torch import nn

from convwright.architecture import Architecture, create
from convwright.cost import count_by_torch
from convwright.cost.budget import Limits
from convwright.cost.latency import compare_latency
from convwright.edits import Plan, RemoveBlock
from convwright.errors import BudgetError
from convwright.experiments.designs.design import SEARCH_FORMAT, DesignContext, NetworkSpec, opened
from convwright.experiments.designs.search_design import FOUND, Searched, UpToTheEnd
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.auto.designs import DesignBuilder, ProposedDesign, weighed
from convwright.methods.conflicts.blocks import BlockGroups
from convwright.methods.options import MethodOptions
from convwright.methods.phased.phased import PhasedDesign
from convwright.methods.receptive_field.organizer import organize
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.methods.script import Batch, Script, Scripted
from convwright.metrics.receptive_field.analysis import Score
from convwright.runs.directory.files import read_json
from convwright.training import ImageData, Recipe, load_data


@dataclass(frozen=True)
class Kept:
    """A search decides the edits, and the row's training goes on from the weights that its result inherits, if any.

    Attributes:
        search: The search.
    """

    kind: ClassVar[str] = "kept"

    search: Searched

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the found edits at the end, and its weights.

        Raises:
            RecipeError: The search ended without a result.
        """
        found = self.search.resolve(model, form, setting)
        weights = found.searches[-1] / FOUND
        return replace(found, weights=weights if weights.is_file() else None)


@dataclass(frozen=True)
class MovedUnits:
    """The stage-level organizer moves units between stages, as edits: any network has those, not only a builder.

    Attributes:
        score: Of a distribution of units.
    """

    kind: ClassVar[str] = "units"

    score: Score = "log"

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the organizer's edits at the end; as it was where nothing moves."""
        found = organize(opened(model, form, setting.shape), Rule("greedy", score=self.score))
        return form.joined(tuple(found.edits))


@dataclass(frozen=True)
class Rest:
    """The row's training gets what the searches before it left of a total, so that all rows of a table cost the same.

    Counted in images seen in training times MACs of one image forwards. Whole epochs: what is left over is less than
    one epoch of the row's network.

    Attributes:
        total: In epochs of the untouched network over all training images.
    """

    kind: ClassVar[str] = "rest"

    total: float

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the number of epochs, at least one.

        Raises:
            DataError: The data cannot be read.
        """
        images = len(load_data(setting.data, setting.data_dir, input_shape=setting.shape, val_fraction=0.0).train)
        spent = sum(read_json(folder / "result.json", SEARCH_FORMAT)["image_macs"] for folder in form.searches)
        whole, own = (opened(model, each, setting.shape).profile().macs for each in (setting.start, form))
        left = self.total * images * whole - spent
        return replace(form, epochs=max(1, int(left / (images * own) + 1e-9)))


@dataclass(frozen=True)
class Phases(Searched):
    """Method ``phased`` without techniques: its recipe is that of all rows.

    It trains the untouched network on beside every phase, to show it. That belongs to no result, so it is left out.
    """

    method: str = "phased"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def method_for(self, arch: Architecture, limits: Limits | None) -> Method:
        """Return the method that searches, without the trainings of the untouched network after the first."""
        assert limits is not None
        given: dict[str, Any] = {"epochs": 1, "tune_epochs": 1, "divisor": 1, "seed": self.seed, **self.options}
        return PhasesAlone(arch, limits, techniques=(), **given)


class PhasesAlone(PhasedDesign):
    """The phases without trainings of the untouched network beside them."""

    def _beside(self, seed: int) -> Batch:
        return ()

    @property
    def found(self) -> Candidate | None:
        """The best network, to be trained on from its weights, by the row; None as long as there is none."""
        best = self.best()
        return None if best is None else Candidate(best.candidate.plan, best.trial, 1, best.candidate.seed)


@dataclass(frozen=True)
class LatencyStudy:
    """The latency of a row's network, measured in turns with that of the untouched one.

    Each works on images of its own resolution.

    Attributes:
        model: The untouched network, as for `create`.
        options: Of its builder.
        shape: (c, h, w) of its images.
        seconds: How long both are measured.
    """

    kind: ClassVar[str] = "latency"

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shape: tuple[int, int, int] = (3, 32, 32)
    seconds: float = 2.0

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return ``latency`` and ``untouched`` in seconds and ``ratio``, the median over turns.

        And what costs refer to: ``images``, how many were trained on, and ``macs``, those of the untouched network.
        """
        untouched, _, _ = create(self.model, **self.options)
        own = copy.deepcopy(model).float().cpu()
        both = {
            "untouched": (untouched.eval(), torch.zeros(1, *self.shape)),
            "own": (own.eval(), torch.zeros(1, *data.shape)),
        }
        timed = compare_latency(both, seconds=self.seconds)
        return {
            "latency": timed.latencies["own"].median,
            "untouched": timed.latencies["untouched"].median,
            "ratio": timed.ratios["own"].median,
            "images": len(data.train),
            "macs": count_by_torch(untouched, both["untouched"][1]),
        }


_FACTORS = (0.5, 2.0)  # of widths; one ratio of all of them then brings the network to the budget
_DRAWS = 50  # so many draws in a row without a network end the search


@dataclass(frozen=True)
class Tpe(Searched):
    """A search by Optuna's TPE; the final training is left to the row.

    Attributes:
        options: ``trials`` and ``trial_epochs`` of each.
    """

    method: str = "tpe"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def method_for(self, arch: Architecture, limits: Limits | None) -> Method:
        """Return the method that searches, without its last batch."""
        assert limits is not None
        return UpToTheEnd(TpeSearch(arch, limits, seed=self.seed, **self.options))


class TpeOptions(MethodOptions):
    """Options of `TpeSearch`.

    Attributes:
        trials: How many are trained.
        trial_epochs: Epochs of each.
    """

    trials: int = 20
    trial_epochs: int = 1


class TpeSearch(Scripted):
    """Trials from new weights, as one would run Optuna; the most accurate network is trained to the end.

    A trial draws one factor for the widths of each stage, log-uniform, and how many blocks each stage keeps; the last
    ones are removed. Then one ratio for all widths brings it to the budget, from above or from below: so none is lost
    to the limit, and none wastes a part of it. Accuracy is what TPE is told.

    Raises:
        BudgetError: No draw gives a network within the limits.
    """

    Options = TpeOptions
    options: TpeOptions
    limits: Limits  # never None here

    def set_up(self) -> None:
        """Find what can be drawn."""
        arch = self.arch
        self.bench = DesignBuilder(arch, self.limits)
        self.groups = BlockGroups.of(arch)
        self.untouched = Plan.empty(arch)
        self.places = {layer: number for number, stage in enumerate(arch.stages) for layer in stage.layers}

    def _run(self) -> Script:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.terms.seed))
        found: list[Evidence] = []
        epochs = self.options.trial_epochs
        for turn in range(self.options.trials):
            trial, design = self._drawn(study)
            plan = self.untouched.with_edits(*design.edits)
            (evidence,) = yield (Candidate(plan, None, epochs, self.terms.seed + turn, weights="fresh"),)
            if not self._meets(evidence):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            study.tell(trial, evidence.score)
            found.append(evidence)
        best = max(found, key=lambda e: e.score, default=None)
        if best is None:
            return
        final = Candidate(best.candidate.plan, None, 1, self.terms.seed, weights="fresh")
        yield (final, Candidate(self.untouched, None, 1, self.terms.seed, role="baseline", weights="fresh"))

    def _drawn(self, study: optuna.Study) -> tuple[optuna.trial.Trial, ProposedDesign]:
        for _ in range(_DRAWS):
            trial = study.ask()
            design = self._design(trial)
            if design is not None:
                return trial, design
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise BudgetError(f"tpe: none of {_DRAWS} draws meets {self.limits.describe()}. Raise the budget")

    def _design(self, trial: optuna.trial.Trial) -> ProposedDesign | None:
        numbers = sorted(set(self.places.values()))
        factors = {n: trial.suggest_float(f"width{n}", *_FACTORS, log=True) for n in numbers}
        gone = [name for n, stage in enumerate(self.groups.stages) for name in self._gone(trial, n, stage)]
        # A group counts with the stage of its first layer; what lies in no stage, with the last one.
        widths = {
            group.name: factors[self.places.get(group.name.partition("[")[0], numbers[-1])]
            for group in self.bench.arch.free_groups
        }
        words = f"draw {trial.number}"
        return self.bench.design(words, tuple(RemoveBlock(name) for name in gone), weighed(widths))

    def _gone(self, trial: optuna.trial.Trial, number: int, stage: Sequence[str]) -> list[str]:
        """Return the blocks that a stage loses; it keeps one."""
        free = [name for name in stage if name not in self.groups.fixed]
        most = min(len(free), len(stage) - 1)
        if not most:
            return []
        kept = trial.suggest_int(f"blocks{number}", len(stage) - most, len(stage))
        return free[len(free) - (len(stage) - kept) :]
