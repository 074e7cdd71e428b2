"""What a search ended with, and the parts of ``result.json`` that tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convwright.errors import RunError
from convwright.methods import Evidence, Method
from convwright.runs.evaluate import HISTORY, read_history
from convwright.runs.prove import Proof
from convwright.runs.train import judged
from convwright.training import Metrics


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """The end of a search.

    Attributes:
        trials: All, in the order of asking.
        best: What is handed back.
        baseline: The untouched network trained as long.
        decisions: Of the method, as JSON values.
        log: Of the method, one sentence each.
        finals: Trials of candidates that were trained to the end, where a method seeks several networks.
    """

    trials: tuple[Evidence, ...]
    best: Evidence
    baseline: Evidence
    decisions: tuple[Mapping[str, Any], ...] = ()
    log: tuple[str, ...] = ()
    finals: tuple[int, ...] = ()

    @classmethod
    def of(cls, method: Method, trials: tuple[Evidence, ...], best: Evidence | None) -> SearchOutcome:
        """Gather what a method tells at its end.

        Raises:
            RunError: There is no result, or nothing to compare it with.
        """
        if best is None:
            failed = [t for t in trials if not t.usable]
            why = f"trial {failed[0].trial}: {failed[0].message}" if failed else "no trial meets the budget"
            raise RunError(f"the search found nothing: {why}")
        by_role = {t.candidate.role: t for t in trials if t.usable}
        baseline = by_role.get("baseline") or by_role.get("base")  # trained as long as the result, or as it was
        if baseline is None:
            raise RunError("the untouched network could not be trained: there is nothing to compare with")
        decisions = tuple(decision.to_dict() for decision in method.decisions)
        return cls(trials, best, baseline, decisions, tuple(method.log), tuple(method.finals))

    @property
    def words(self) -> dict[int, str]:
        """What the method says that each trial was; the last word counts."""
        return {int(n): str(words) for decision in self.decisions for n, words in decision["trials"].items()}


def side(trial: Evidence, proof: Proof, test: Metrics | None) -> dict[str, Any]:
    """Return one of the two sides that ``result.json`` compares, as JSON values."""
    validation = {"accuracy": trial.score, "stderr": trial.stderr}
    return {"trial": trial.trial, **proof.as_dict(), "validation": validation, "test": judged(test)}


def trained(folder: Path, samples: int) -> dict[str, Any] | None:
    """Return the training accuracy of a trial's last epoch, on so many images; None where no epoch is recorded."""
    file = folder / HISTORY
    epochs = read_history(file) if file.is_file() else ()
    return {"accuracy": epochs[-1]["train_acc"], "samples": samples} if epochs else None


def trial_entry(trial: Evidence) -> dict[str, Any]:
    """Return a trial as JSON values, with what of its candidate is not in the plan."""
    candidate = trial.candidate
    return {
        **trial.to_dict(),
        "role": candidate.role,
        "parent": candidate.parent,
        "epochs": candidate.epochs,
        "weights": candidate.weights,
        "images": candidate.images,
        "recipe": dict(candidate.recipe),
    }
