"""The trials of a run in words and numbers, and what they observed as tables: widths, conflicts, channel quality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from convwright.edits import Width
from convwright.methods import Candidate, Evidence
from convwright.report.content import Heat, Networks, Trial
from convwright.report.recorded import Recorded, RecordedTrial
from convwright.runs.directory.result import non_dominated
from convwright.tables import Json

_ROLES = {
    "base": "the untouched network",
    "baseline": "the untouched network, trained further",
    "as it is": "the untouched network, as it is",
}
_METRICS = ("macs", "params", "latency", "activations", "weights")
_LONGEST = 3  # edits named in words
_MOST = 8  # observed trials whose tables are kept: the first and the last ones
_DIGITS = 5


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
        replace(_trial(t, words), front=t.number in front, ended=t.number in ended, chosen=t.number == chosen)
        for t in recorded.trials
    )


def _trial(recorded: RecordedTrial, phases: Mapping[int, str]) -> Trial:
    number, candidate, e = recorded.number, recorded.candidate, recorded.evidence
    words, asked = phases.get(number) or _words(candidate), (candidate.epochs, candidate.parent)
    if e is None:
        return Trial(number, candidate.role, words, "unfinished", None, 0.0, {}, *asked, 0.0)
    if e.before_training is not None:
        steps = "".join(f"; {name} {e.metric.shown(value)}" for name, value in e.repaired.items())
        words = f"{words} ({e.metric.shown(e.before_training)} right after the edits{steps})"
    found = (e.status, e.score if e.usable else None, e.stderr, dict(e.costs))
    return Trial(number, candidate.role, words, *found, *asked, e.seconds, note=e.message)


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


def widths(trials: Sequence[RecordedTrial], networks: Networks | None) -> Heat | None:
    """Return the sizes that the trials' plans give to channel groups; None where none gives any.

    Args:
        trials: In the order of asking.
        networks: The untouched network in it gives the sizes at first; without it, the largest stands for it.
    """
    edits = [[edit for edit in trial.candidate.plan.edits if isinstance(edit, Width)] for trial in trials]
    given = [{edit.target: int(edit.size) for edit in each} for each in edits]  # the last size that a plan gives
    names = tuple(dict.fromkeys(name for sizes in given for name in sizes))
    if not names or len(trials) < 2:
        return None
    values = tuple(tuple(sizes.get(name) for sizes in given) for name in names)
    sizes = {} if networks is None else {c.name: c.before.channels for c in networks.layers if c.before is not None}
    most = [max(size for size in row if size is not None) for row in values]
    first = tuple(sizes.get(name, largest) for name, largest in zip(names, most, strict=True))
    return Heat("channels", names, tuple(str(trial.number) for trial in trials), values, first)


def conflicts(trials: Sequence[RecordedTrial]) -> tuple[Heat, ...]:
    """Return the share of the images in conflict, by block and time, for the trials that looked."""
    heats = []
    for trial, found in _looked(trials, "bundles"):
        own: Mapping[str, int] = found["own"]  # per block, the point that judges it
        values = tuple(tuple(_rounded(row[place]) for row in found["excess"]) for place in own.values())
        moments = (("epoch" if time["event"] == "epoch" else "step", time) for time in found["times"])
        columns = _distinct([f"{what} {time[what]}" for what, time in moments])
        heats.append(Heat(f"trial {trial.number}", tuple(own), columns, values))
    return tuple(heats)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of which no two are equal: charts join columns of one name."""
    return tuple(f"{name} ({names[:n].count(name) + 1})" if name in names[:n] else name for n, name in enumerate(names))


def quality(trials: Sequence[RecordedTrial]) -> tuple[Heat, ...]:
    """Return the QC of every convolution's sides, epoch by epoch, for the trials that looked."""
    return tuple(_quality(trial, found) for trial, found in _looked(trials, "channel-quality"))


def _quality(trial: RecordedTrial, found: Mapping[str, Any]) -> Heat:
    epochs = found["metrics"]["qc"]
    sides = [
        (f"{layer} {side}", tuple(_rounded(epoch[place][axis]) for epoch in epochs))
        for place, layer in enumerate(found["layers"])
        for axis, side in enumerate(("in", "out"))
    ]
    shown = [row for row in sides if any(value is not None for value in row[1])]
    columns = tuple(f"epoch {number}" for number in range(1, len(epochs) + 1))
    return Heat(f"trial {trial.number}", tuple(n for n, _ in shown), columns, tuple(v for _, v in shown))


def _looked(trials: Sequence[RecordedTrial], probe: str) -> list[tuple[RecordedTrial, Mapping[str, Any]]]:
    """Return the first and the last trials that observed something."""
    probes = [(t, t.evidence.probes.get(probe)) for t in trials if t.evidence is not None]
    found = [(trial, values) for trial, values in probes if values]
    return found if len(found) <= _MOST else [*found[: _MOST // 2], *found[-_MOST // 2 :]]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
