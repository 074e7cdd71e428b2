"""A rival of ``rivals``: Optuna's tree-structured Parzen estimator over a width factor and a depth per stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna

from convwright.architecture import Architecture
from convwright.cost.budget import Limits
from convwright.edits import Plan, RemoveBlock
from convwright.errors import BudgetError
from convwright.experiments.designs.search_design import Searched, UpToTheEnd
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.auto.designs import DesignBuilder, ProposedDesign, weighed
from convwright.methods.conflicts.blocks import BlockGroups
from convwright.methods.options import MethodOptions
from convwright.methods.script import Script, Scripted

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
