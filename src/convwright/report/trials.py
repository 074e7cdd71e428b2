"""The trials of a run in words and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from convwright.methods import Candidate, Evidence
from convwright.report.content import Trial
from convwright.report.recorded import Json, Recorded, RecordedTrial
from convwright.runs.directory.result import non_dominated

_ROLES = {
    "base": "the untouched network",
    "baseline": "the untouched network, trained further",
    "as it is": "the untouched network, as it is",
}
_METRICS = ("macs", "params", "latency", "activations", "weights")
_LONGEST = 3  # edits named in words


def costs_limited(settings: Json) -> tuple[str, ...]:
    """Return the costs that trials can be drawn over: those of the objective first, then the limited ones."""
    limited = [metric for metric in _METRICS if metric in settings.get("limits", {})]
    return tuple(dict.fromkeys([*settings.get("objective", ()), *limited, "macs", "params"]))


def described(recorded: Recorded, metrics: Sequence[str], chosen: int | None) -> tuple[Trial, ...]:
    """Return all trials, with those that no other beats marked.

    Args:
        recorded: The run.
        metrics: Costs, those of the objective and the limited ones first.
        chosen: Number of the result's trial.
    """
    settings = recorded.run["settings"]
    counted = settings.get("objective") or [metric for metric in metrics if metric in settings.get("limits", {})]
    usable = [t.evidence for t in recorded.trials if t.evidence is not None and t.evidence.usable]
    front = {e.trial for e in non_dominated([e for e in usable if all(m in e.costs for m in counted)], counted)}
    ended = {entry["trial"] for entry in (recorded.result or {}).get("front", ()) if entry["finished"]}
    words = phases(recorded.decided)
    return tuple(
        _trial(t, words.get(t.number, ""), front=t.number in front, ended=t.number in ended, chosen=t.number == chosen)
        for t in recorded.trials
    )


def _trial(recorded: RecordedTrial, words: str, **marks: bool) -> Trial:
    candidate, evidence = recorded.candidate, recorded.evidence
    known: dict[str, Any] = {"score": None, "stderr": 0.0, "costs": {}, "seconds": 0.0, "status": "unfinished"}
    if evidence is not None:
        known = {"score": evidence.score if evidence.usable else None, "stderr": evidence.stderr}
        known |= {"costs": dict(evidence.costs), "seconds": evidence.seconds, "status": evidence.status}
        known |= {"note": evidence.message}
    if evidence is not None and evidence.before_training is not None:
        words = f"{words or _words(candidate)} ({evidence.before_training:.2%} right after the edits)"
    return Trial(
        number=recorded.number,
        role=candidate.role,
        words=words or _words(candidate),
        epochs=candidate.epochs,
        parent=candidate.parent,
        **{**known, **marks},
    )


def _words(candidate: Candidate) -> str:
    if candidate.role in _ROLES:
        return _ROLES["as it is" if candidate.role == "baseline" and not candidate.epochs else candidate.role]
    edits = candidate.plan.edits
    if not edits:
        return "no edits"
    if len(edits) > _LONGEST:
        kinds = Counter(edit.kind.replace("_", " ") for edit in edits)
        return ", ".join(f"{count} {kind} edit{'s' * (count > 1)}" for kind, count in kinds.items())
    return "; ".join(_edit(edit.to_dict()) for edit in edits)


def _edit(values: Mapping[str, Any]) -> str:
    known = [str(values[name]) for name in ("target", "size", "copies", "operator") if name in values]
    return " ".join([str(values["edit"]).replace("_", " "), *known])


def phases(decided: Json | None) -> dict[int, str]:
    """Return what a method says that each trial was, by number."""
    decisions = () if decided is None else decided.get("decisions", ())
    return {
        int(number): f"{decision['phase']}: {words}" if decision["phase"] else str(words)
        for decision in decisions
        for number, words in decision["trials"].items()
    }


def leading(trials: Sequence[RecordedTrial], limits: Mapping[str, int]) -> Evidence | None:
    """Return the most accurate candidate so far that meets the limits."""
    fit = [
        t.evidence
        for t in trials
        if t.evidence is not None
        and t.evidence.usable
        and t.candidate.role == "candidate"
        and all(t.evidence.costs.get(metric, limit) <= limit for metric, limit in limits.items())
    ]
    return max(fit, key=lambda e: e.score, default=None)


def fastest(seconds: Mapping[str, float]) -> str:
    """Return the seconds of the parts of a run, the trainings summed."""
    trained = sum(value for name, value in seconds.items() if name.startswith("trial "))
    parts = {name: value for name, value in seconds.items() if not name.startswith("trial ") and value >= 0.05}
    words = [f"{name} {value:,.1f}" for name, value in parts.items()]
    return ", ".join([*words, *([f"of these in trials {trained:,.1f}"] if trained else [])])
