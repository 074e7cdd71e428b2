"""What a search ended with: the parts of ``result.json`` that tell it, and the networks of a Pareto search.

``front/0012`` holds plan, weights and a result of its own, so that ``convwright export`` takes it as it takes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convwright.cost.budget import Limits
from convwright.errors import RunError, counted
from convwright.methods import Evidence, Method
from convwright.runs.directory.files import save_weights, write_json, write_text
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import networks
from convwright.runs.directory.provenance import JUDGEMENT, machine, versions
from convwright.runs.directory.result import FORMAT, non_dominated
from convwright.runs.directory.study import WEIGHTS, Study
from convwright.runs.history import HISTORY, read_history
from convwright.runs.latency import RunLatency
from convwright.runs.prove import Proof, check_budget
from convwright.runs.train import judged
from convwright.runs.weights_note import KEYS
from convwright.training import Metrics

Json = Mapping[str, Any]
INITIAL = "initial.safetensors"  # the weights that a run started from


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
    shown = epochs[-1]["train_acc"] if epochs else None
    return {"accuracy": shown, "samples": samples} if shown is not None else None


def trial_entry(trial: Evidence) -> dict[str, Any]:
    """Return a trial as JSON values, with what of its candidate is not in the plan."""
    candidate = trial.candidate
    return {
        **trial.to_dict(),
        **{name: getattr(candidate, name) for name in ("role", "parent", "epochs", "weights", "images")},
        "recipe": dict(candidate.recipe),
    }


def run_record(study: Study, outcome: SearchOutcome, met: Json, seconds: Json, more: Json) -> dict[str, Any]:
    """Return everything of ``result.json`` but the sides that are compared; `met` is as of `check_budget`."""
    return {
        "format": FORMAT,
        "version": 1,
        "judgement": JUDGEMENT,
        **study.settings,
        "budget_met": met,
        **more,
        "trials": [trial_entry(t) for t in outcome.trials],
        "decisions": list(outcome.decisions),
        "log": list(outcome.log),
        "seconds": {**seconds, **{f"trial {t.trial}": t.seconds for t in outcome.trials}},
        "versions": versions(),
        "machine": machine(),
        "command": study.command,
    }


def write_result(
    folder: Path, outcome: SearchOutcome, proofs: Sequence[Proof], content: Json, latency: RunLatency | None = None
) -> None:
    """Write plan, weights, both networks and ``result.json``, which comes last: it says that the others are whole."""
    write_text(folder / "plan.json", outcome.best.candidate.plan.to_json())
    save_weights(proofs[1].arch.model, folder / WEIGHTS, {key: content[key] for key in KEYS if key in content})
    write_json(folder / NETWORKS, networks(proofs[0].arch, proofs[1].arch, latency))
    write_json(folder / "result.json", content)


FOLDER = "front"
_LEFT_OUT = ("trials", "decisions", "log", "seconds", FOLDER)  # of the run, not of one network

Prove = Callable[[Evidence], Proof]
Test = Callable[[Proof], Metrics | None]


def write_front(
    folder: Path, outcome: SearchOutcome, objective: Sequence[str], content: Mapping[str, Any], limits: Limits,
    prove: Prove, test: Test,
) -> list[dict[str, Any]]:  # fmt: skip
    """Prove and write each network that was trained to the end, and return the front.

    Args:
        folder: The run directory.
        outcome: The end of the search.
        objective: The costs.
        content: Of ``result.json``, with both sides.
        limits: The budget in numbers.
        prove: Builds a trial's network anew and counts it.
        test: Judges it on the test part.

    Returns:
        One entry for each network that was trained to the end and for every other trial that no other beats, the
        cheapest first: ``trial``, ``what``, ``score``, ``stderr``, ``costs``, ``finished``, ``result``; of those that
        were trained to the end ``counts``, ``test`` and, but for the untouched network, ``folder``, too.

    Raises:
        BrokenBudgetError: The two counts of one differ, or it breaks the budget.
    """
    finals = {*outcome.finals, outcome.best.trial}
    known = {content[name]["trial"]: content[name] for name in ("baseline", "result")}
    listed = {t.trial: t for t in non_dominated(outcome.trials, objective)}
    listed |= {t.trial: t for t in outcome.trials if t.trial in finals or t.trial == outcome.baseline.trial}
    entries = []
    for trial in sorted(listed.values(), key=lambda t: [*(t.costs[m] for m in objective), t.score]):
        entry = _entry(trial, outcome)
        if trial.trial in finals:
            proof = prove(trial)
            met = check_budget(proof, limits)
            told = known.get(trial.trial) or side(trial, proof, test(proof))
            where = f"{FOLDER}/{trial.trial:04d}"
            (folder / where).mkdir(parents=True, exist_ok=True)
            write_text(folder / where / "plan.json", trial.candidate.plan.to_json())
            note = {key: content[key] for key in KEYS if key in content}
            save_weights(proof.arch.model, folder / where / WEIGHTS, note)
            own = {name: value for name, value in content.items() if name not in _LEFT_OUT}
            # Last: it says that the others are whole.
            write_json(folder / where / "result.json", {**own, "budget_met": met, "result": told})
            entry |= {"finished": True, "counts": told["counts"], "test": told["test"], "folder": where}
        elif trial is outcome.baseline:
            told = known[trial.trial]
            entry |= {"finished": True, "counts": told["counts"], "test": told["test"]}
        entries.append(entry)
    return entries


def _entry(trial: Evidence, outcome: SearchOutcome) -> dict[str, Any]:
    role = trial.candidate.role
    further = "trained as long" if trial.candidate.epochs else "as it is"
    untouched = {"base": "the untouched network", "baseline": f"the untouched network, {further}"}
    return {
        "trial": trial.trial,
        "what": untouched.get(role) or outcome.words.get(trial.trial, counted(len(trial.candidate.plan.edits), "edit")),
        "score": trial.score,
        "stderr": trial.stderr,
        "costs": dict(trial.costs),
        "finished": False,
        "result": trial is outcome.best,
    }
