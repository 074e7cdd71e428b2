"""What trials observed, as tables of numbers: widths, conflicts, channel quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convwright.edits import Width
from convwright.report.content import Heat, Networks
from convwright.report.recorded import RecordedTrial

_MOST = 8  # observed trials whose tables are kept: the first and the last ones
_DIGITS = 5


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
    return tuple(_conflicts(trial, found) for trial, found in _looked(trials, "bundles"))


def _conflicts(trial: RecordedTrial, found: Mapping[str, Any]) -> Heat:
    own: Mapping[str, int] = found["own"]  # per block, the point that judges it
    values = tuple(tuple(_rounded(row[place]) for row in found["excess"]) for place in own.values())
    moments = (("epoch" if time["event"] == "epoch" else "step", time) for time in found["times"])
    columns = _distinct([f"{what} {time[what]}" for what, time in moments])
    return Heat(f"trial {trial.number}", tuple(own), columns, values)


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
