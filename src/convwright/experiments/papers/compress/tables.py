"""What follows from the rows of ``compress``: a table per network and budget, and how far ours is ahead of each row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convwright.experiments.papers.baselines.tables import clear, lead_of
from convwright.experiments.papers.compress.runtimes import RUNTIMES
from convwright.experiments.results_table import spread
from convwright.experiments.row import Conclusion
from convwright.tables import Sheet

Json = Mapping[str, Any]
OURS = "ours"
_NOTE = (
    "Mean ± standard deviation over seeds, of the last epoch. Cut, and cut with batch norm: test images, before any "
    "tuning, as cut and with its statistics estimated anew. Latency: one image and one thread, milliseconds and the "
    "ratio to the untouched network, measured in turns. Seconds: of the cut with all that belongs to it, and of the "
    "tuning."
)


def conclude(content: Json) -> Conclusion:
    """Return the tables, and how far ours is ahead."""
    done = [row for row in content["rows"] if row["seeds"]]
    untouched = {row["name"]: row for row in done if not row["control"]}
    tables: dict[str, list[Json]] = {}
    for row in done:
        if row["control"]:
            tables.setdefault(row["name"].partition("-")[0], []).append(row)
    alone = untouched.keys() - {row["control"] for row in done}
    tables |= {name: [] for name in untouched if name in alone}
    sheets, values = [], {}
    for name, rows in tables.items():
        beside = untouched.get(rows[0]["control"] if rows else name)
        values[name] = verdict(rows, beside)
        every = rows if beside is None else [beside, *rows]
        cells = tuple(tuple(_cells(row, beside)) for row in every)
        notes = (_NOTE, *(f"{_kind(row)}: {row['note']}." for row in every))
        sheets.append(Sheet(name, _COLUMNS, cells, tuple(range(1, len(_COLUMNS))), notes).without_empty())
    return Conclusion(tuple(sheets), values, complete=True)


def verdict(rows: Sequence[Json], untouched: Json | None) -> dict[str, Any]:
    """Return how far ours is ahead of each row and of the untouched network, with the deviation of the difference."""
    kinds = {_kind(row): row for row in rows}
    if OURS not in kinds:
        return {}
    others = {kind: row for kind, row in kinds.items() if not kind.startswith(OURS)}
    if untouched is not None:
        others["untouched"] = untouched
    leads = {kind: lead_of(kinds[OURS], row) for kind, row in others.items()}
    return {"ours_ahead": leads, "ours_clearly_ahead": [kind for kind, found in leads.items() if clear(found)]}


def _kind(row: Json) -> str:
    return str(row["name"]).partition("-")[2]


_COLUMNS = (
    "row", "test", "against untouched", "validation", "cut", "cut, batch norm", "MACs", "parameters", *RUNTIMES,
    "seconds: cut", "tuning", "seeds",
)  # fmt: skip


def _cells(row: Json, untouched: Json | None) -> Iterator[str]:
    yield _kind(row)
    yield spread(row["mean"], row["deviation"])
    yield f"{100 * lead_of(row, untouched)['lead']:+.2f}" if untouched not in (None, row) else ""
    yield _spread([value for value in row["validations"] if value is not None])
    stages = [{each["stage"]: each for each in histories[-1]} for histories in row["histories"]]
    for stage in ("cut", "batch norm"):
        yield _spread([found[stage]["test"] for found in stages if stage in found])
    yield f"{row['macs']:,}" if untouched is None else f"{row['macs'] / untouched['macs']:.1%}"
    yield f"{row['params']:,}"
    studies = [study for study in row["studies"] if study is not None]
    for runtime in RUNTIMES:
        yield _latency([study[runtime] for study in studies])
    yield f"{statistics.fmean(sum(each['seconds'] for each in known[-1][1:]) for known in row['histories']):.0f}"
    yield f"{statistics.fmean(row['seconds']):.0f}"
    yield str(len(row["seeds"]))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _latency(measured: Sequence[Json]) -> str:
    if not measured:
        return ""
    own, ratio = (statistics.median(each[name]["median"] for each in measured) for name in ("own", "ratio"))
    return f"{1000 * own:.2f} ms, x {ratio:.2f}"
