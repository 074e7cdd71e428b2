"""What follows from the rows of ``rivals``: a table per network and budget, who wins and by how much, and pictures."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from convwright.experiments.results_table import spread
from convwright.experiments.row import Conclusion
from convwright.plots import Series, lines
from convwright.tables import Json, Sheet

OURS = "auto"
UNTOUCHED = ("baseline", "baseline-long")


def conclude(content: Json) -> Conclusion:
    """Return the tables, who wins, and a picture per network."""
    tables: dict[str, list[Json]] = {}
    untrained: dict[str, list[str]] = {}
    for row in content["rows"]:
        table, kind = _split(row)
        if row["mean"] is None:
            untrained.setdefault(table, []).append(kind)
        else:
            tables.setdefault(table, []).append(row)
    sheets = tuple(_sheet(name, rows, untrained.get(name, ())) for name, rows in tables.items())
    values = {name: verdict(rows) for name, rows in tables.items()}
    networks: dict[str, list[Json]] = {}
    for name, rows in tables.items():
        network, _, metric = of_table(name)
        if metric == "MACs":
            networks.setdefault(network, []).extend(rows)
    pictures = {f"rivals-{name}": _picture(name, rows) for name, rows in networks.items() if len(rows) > 1}
    return Conclusion(sheets, values, pictures, complete=True)


def _split(row: Json) -> tuple[str, str]:
    """Return the table that a row is in, such as ``resnet50``, and what it is called there."""
    table, _, kind = str(row["name"]).partition("-")
    return table, kind


def of_table(name: str) -> tuple[str, int, str]:
    """Return the network of a table, the budget in percent and of what.

    Examples:
        >>> of_table("resnet50"), of_table("mobilenet25ms")
        (('resnet', 50, 'MACs'), ('mobilenet', 25, 'latency'))
    """
    network, percent, unit = re.fullmatch(r"(\D+)(\d+)(ms)?", name).groups()  # type: ignore[union-attr]
    return network, int(percent), "latency" if unit else "MACs"


def compute(row: Json) -> dict[str, float]:
    """Return what a row's search and its final training cost, in epochs of the untouched network.

    Args:
        row: Of ``result.json``, trained.
    """
    known = next(study for study in row["studies"] if study is not None)
    epoch = known["images"] * known["macs"]
    searched = math.fsum(each["image_macs"] for each in row.get("searches") or ()) / epoch
    final = row["form"]["epochs"] * row["macs"] / known["macs"]
    return {"search": searched, "final": final, "total": searched + final}


# ------------------------------------------------------------------ who wins


def verdict(rows: Sequence[Json]) -> dict[str, Any]:
    """Return how ``auto`` stands in a table; without it, only who is first.

    The deviation that a lead is held against is that of the difference of two single trainings: the root of the sum of
    both rows' squared deviations; None where a row has one seed. As accurate as the untouched network is what loses no
    more than the deviation against it.
    """
    by_kind = {_split(row)[1]: row for row in rows}
    within = [row for kind, row in by_kind.items() if kind not in UNTOUCHED]
    if not within:
        return {}
    order = sorted(within, key=lambda row: -row["mean"])
    found: dict[str, Any] = {"first": _split(order[0])[1]}
    long = by_kind.get("baseline-long")
    if long is not None:
        leads = [(row, lead_of(row, long)) for row in within]
        near = [row for row, lead in leads if lead["lead"] >= -(lead["deviation"] or 0.0)]
        found["as_accurate"] = {_split(row)[1]: latency(row) for row in near}
    ours = by_kind.get(OURS)
    if ours is not None and long is not None:
        found["auto_ahead_of_untouched"] = lead_of(ours, long)
    others = [row for row in order if row is not ours]
    if ours is None or not others:
        return found
    lead = lead_of(ours, others[0])
    above = {_split(row)[1]: lead_of(ours, row) for row in others}
    found |= {"auto_ahead_of_next": {"row": _split(others[0])[1], **lead}, "auto_ahead": above}
    found["auto_above_every_row"] = all(clear(each) for each in above.values())
    return found


def lead_of(one: Json, other: Json) -> dict[str, Any]:
    """Return by how much one row is ahead of another, and the deviation of the difference of two single trainings."""
    both = one["deviation"], other["deviation"]
    deviation = None if None in both else math.hypot(*both)
    return {"lead": one["mean"] - other["mean"], "deviation": deviation}


def clear(lead: Json) -> bool:
    """Return whether a lead is larger than its deviation; never where that is not known."""
    return lead["deviation"] is not None and lead["lead"] > lead["deviation"]


def latency(row: Json) -> float | None:
    """Return the latency of a row's network over that of the untouched one: the median over seeds."""
    known = [study["ratio"] for study in row.get("studies") or () if study is not None]
    return statistics.median(known) if known else None


def _told(found: Json) -> tuple[str, ...]:
    if not found:
        return ()
    said = [f"First: {found['first']}."]
    if next_one := found.get("auto_ahead_of_next"):
        told = f"auto against the best other row, {next_one['row']}: {100 * next_one['lead']:+.2f} points"
        noise = next_one["deviation"]
        if noise is None:
            said.append(f"{told}; one seed says nothing of the noise.")
        else:
            word = "more" if clear(next_one) else "no more"
            said.append(f"{told}, {word} than the deviation of the difference, {100 * noise:.2f}.")
        behind = [kind for kind, lead in found["auto_ahead"].items() if not clear(lead)]
        if behind and noise is not None:
            said.append(f"Rows that auto is not clearly above: {', '.join(behind)}.")
    if lead := found.get("auto_ahead_of_untouched"):
        noise = "" if lead["deviation"] is None else f" (deviation of the difference {100 * lead['deviation']:.2f})"
        said.append(f"auto against the untouched network, all the compute: {100 * lead['lead']:+.2f} points{noise}.")
    if "as_accurate" in found:
        fast = [f"{kind} ({ratio:.2f})" for kind, ratio in found["as_accurate"].items() if ratio is not None]
        said.append(
            "As accurate as the untouched network with all the compute, with latency beside it: "
            f"{', '.join(fast) or 'none'}."
        )
    return (" ".join(said),)


# ------------------------------------------------------------------ tables and pictures


def _sheet(name: str, rows: Sequence[Json], untrained: Sequence[str]) -> Sheet:
    network, percent, metric = of_table(name)
    columns = (
        "row", "accuracy", "seeds", "MACs", "parameters", "latency", "search", "final", "total", "final, own epochs",
    )  # fmt: skip
    cells = tuple(_cells(row) for row in sorted(rows, key=lambda r: -r["mean"]))
    notes = (
        "Accuracy: test images, mean ± standard deviation over seeds of the final training. Latency: over that of the "
        "untouched network, measured in turns. Search, final and total: images seen times MACs of the network, in "
        "epochs of the untouched network over all training images.",
        *_told(verdict(rows)),
        *([f"Not trained, so not compared: {', '.join(untrained)}."] if untrained else []),
    )
    return Sheet(f"{network} at {percent} % of its {metric}", columns, cells, tuple(range(2, len(columns))), notes)


def _cells(row: Json) -> tuple[str, ...]:
    ratio, spent = latency(row), compute(row)
    return (
        _split(row)[1],
        spread(row["mean"], row["deviation"]),
        str(len(row["seeds"])),
        f"{row['macs']:,}",
        f"{row['params']:,}",
        "" if ratio is None else f"x {ratio:.2f}",
        *(f"{spent[part]:.2f}" for part in ("search", "final", "total")),
        str(row["form"]["epochs"]),
    )


def _picture(name: str, rows: Sequence[Json]) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(_split(row)[1], []).append((row["macs"] / 1e6, 100 * row["mean"]))
    series = [Series(kind, tuple(each), joined=False) for kind, each in points.items()]
    return lines(series, f"{name}: test accuracy beside millions of MACs", "millions of MACs", "test accuracy, %, mean")
