"""Pictures of a recorded search: its widths, the quality of its layers, and its score beside its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convwright.plots import Series, heat, lines

Json = Mapping[str, Any]


def widths(found: Json, title: str) -> str | None:
    """Draw the widths of all groups over the trials; None where the method recorded none.

    Args:
        found: A search's ``result.json``.
        title: Above the picture.
    """
    steps = [(number, step["widths"]) for number, step in enumerate(found["history"], start=1) if step.get("widths")]
    if not steps:
        return None
    series = [Series(name, tuple((n, float(sizes[name])) for n, sizes in steps)) for name in steps[0][1]]
    return lines(series, title, "trial", "channels")


def qualities(found: Json, title: str) -> str | None:
    """Draw QC of every layer after every epoch, one row per side of a layer; None where it was not observed."""
    table = found.get("qualities")
    if not table:
        return None
    rows = [
        (f"{layer} {side}", [epoch[place][axis] for epoch in table["qc"]])
        for place, layer in enumerate(table["layers"])
        for axis, side in enumerate(("in", "out"))
    ]
    shown = [row for row in rows if any(value is not None for value in row[1])]
    return heat(shown, title, "epoch, over all trials") if shown else None


def scores(searches: Sequence[tuple[str, Json]], title: str, cost: str = "macs") -> str | None:
    """Draw the validation accuracy of every trial beside what the network costs.

    Args:
        searches: Name and ``result.json``.
        title: Above the picture.
        cost: ``macs`` or ``params``.
    """
    series = []
    for name, found in searches:
        points = [(t[cost] / 1e6, 100 * t["score"]) for t in found["trials"] if t["score"] is not None]
        if points:
            series.append(Series(name, tuple(points), joined=False))
    words = "millions of MACs" if cost == "macs" else "millions of parameters"
    return lines(series, title, words, "validation accuracy, %") if series else None


def pictures_of(name: str, found: Json) -> dict[str, str]:
    """Return the pictures of one search by name.

    Args:
        name: What it is called, e.g. by its row.
        found: Its ``result.json``.
    """
    trials = len(found["trials"])
    drawn = {
        f"{name}-widths": widths(found, f"{name}: widths over {trials} trials"),
        f"{name}-quality": qualities(found, f"{name}: quality QC of the layers over {trials} trials"),
        f"{name}-score": scores([(name, found)], f"{name}: score and cost of {trials} trials"),
    }
    return {key: text for key, text in drawn.items() if text is not None}
