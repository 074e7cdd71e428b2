"""Pictures of a recorded search: widths, quality of layers, score beside cost; and of rows: accuracy beside cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from convwright.plots import Point, Series, heat, lines, scatter
from convwright.tables import Json

MILLIONS = {"macs": "millions of MACs", "params": "millions of parameters"}


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


def scores(name: str, found: Json, title: str) -> str | None:
    """Draw the validation accuracy of every trial beside what the network costs; None without a score."""
    points = tuple((t["macs"] / 1e6, 100 * t["score"]) for t in found["trials"] if t["score"] is not None)
    series = [Series(name, points, joined=False)]
    return lines(series, title, MILLIONS["macs"], "validation accuracy, %") if points else None


def beside_cost(rows: Mapping[str, Sequence[Json]], title: str, cost: str = "macs", per: str = "seed") -> str:
    """Draw the test accuracy of every training beside what its network costs.

    Args:
        rows: Name -> rows of ``result.json`` that are drawn alike.
        title: Above the picture.
        cost: ``macs`` or ``params``.
        per: What a point stands for.
    """
    series = [
        Series(name, tuple((r[cost] / 1e6, 100 * a) for r in alike for a in r["accuracies"]), joined=False)
        for name, alike in rows.items()
    ]
    return lines(series, title, MILLIONS[cost], f"test accuracy, %, one point per {per}")


def beside_accuracy(
    rows: Mapping[str, tuple[float, Json]], title: str, words: str, found: Mapping[str, float] | None
) -> str:
    """Draw networks by a number that may predict their accuracy, and by how far their accuracy is from the mean.

    Args:
        rows: Name -> the number, and the row of ``result.json``.
        title: Above the picture; the rank correlation is added.
        words: What the number is.
        found: Of `correlated`.
    """
    middle = statistics.fmean(row["mean"] for _, row in rows.values())
    errors = {name: (row["deviation"] or 0.0) / math.sqrt(len(row["seeds"])) for name, (_, row) in rows.items()}
    points = [
        Point(name, number, 100 * (row["mean"] - middle), 100 * errors[name]) for name, (number, row) in rows.items()
    ]
    rho = "" if found is None else f", rank correlation {found['rho']:+.2f}"
    return scatter(points, f"{title}{rho}", words, f"accuracy less the mean ({middle:.1%}), points")


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
        f"{name}-score": scores(name, found, f"{name}: score and cost of {trials} trials"),
    }
    return {key: text for key, text in drawn.items() if text is not None}
