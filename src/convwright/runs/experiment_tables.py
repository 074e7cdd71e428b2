"""Tables of `reproduce` and `ablate`, for a terminal and as Markdown, from the content of their ``result.json``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from convwright.runs.gains import gain

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table of plain text.

    Attributes:
        title: Above the table, on a terminal.
        columns: Headings.
        rows: Cells, one per column.
        right: Columns that are set flush right.
        notes: Lines below the table.
        spare: Columns for which a terminal has no room.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return it as Markdown, without the title."""
        rule = ["---:" if i in self.right else "---" for i in range(len(self.columns))]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        lines = ["| " + " | ".join(line) + " |" for line in (self.columns, rule, *cells)]
        return "\n".join(lines) + "".join(f"\n\n{note}" for note in self.notes)

    def rich(self) -> Group:
        """Return it for a terminal."""
        table = Table(title=Text(self.title), title_justify="left", title_style="bold", header_style="bold")
        shown = [place for place, column in enumerate(self.columns) if column not in self.spare]
        for place in shown:
            column = self.columns[place]
            table.add_column(column, justify="right" if place in self.right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*[Text(row[place]) for place in shown])  # brackets in names are no markup
        return Group(table, *[Text(note) for note in self.notes])

    def without_empty(self) -> Sheet:
        """Return it without the columns that say nothing in any row."""
        kept = [i for i in range(len(self.columns)) if not self.rows or any(row[i] for row in self.rows)]
        return Sheet(
            self.title,
            tuple(self.columns[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
            tuple(new for new, old in enumerate(kept) if old in self.right),
            self.notes,
            self.spare,
        )


# ------------------------------------------------------------------ reproduce


def reproduced(content: Json) -> Sheet:
    """Return an experiment's rows beside the paper's numbers."""
    by_name = {row["name"]: row for row in content["rows"]}
    columns = (
        "row", "parameters", "limit", "MACs", "paper", "ours", "seeds", "target", "against its control, points",
        "seconds per seed", "processor seconds per seed", "note",
    )  # fmt: skip
    rows = tuple(tuple(_reproduced_row(row, by_name)) for row in content["rows"])
    notes = (
        "Ours: test accuracy of the last epoch, mean ± standard deviation over seeds. "
        "Against its control: mean difference seed by seed ± its standard error.",
    )
    return Sheet(
        f"{content['name']} ({content['size']}): {content['title']}", columns, rows, (1, 3, 6), notes
    ).without_empty()


def experiments(found: Sequence[Json]) -> Sheet:
    """Return what can be reproduced."""
    columns = ("name", "what", "rows", "trainings: quick", "standard", "full", "source")
    rows = tuple(
        (
            each["name"],
            each["title"],
            str(len(each["rows"])),
            *(str(each["trainings"][size]) for size in ("quick", "standard", "full")),
            each["source"],
        )
        for each in found
    )
    return Sheet("Experiments: convwright reproduce NAME", columns, rows, (2, 3, 4, 5))


def _reproduced_row(row: Json, by_name: Mapping[str, Json]) -> Iterator[str]:
    done = bool(row["seeds"])
    yield row["name"]
    yield _count(row["params"])
    yield _limit(row) if done else ""
    yield _count(row["macs"])
    yield _paper(row["paper"])
    yield spread(row["mean"], row["deviation"]) if done else "not trained yet"
    yield str(len(row["seeds"])) if done else ""
    yield _target(row)
    yield _against(row, by_name.get(row["control"]))
    yield _each(row["seconds"])
    yield _each([seconds for seconds in row["processor_seconds"] if seconds is not None])
    yield row["note"]


def _limit(row: Json) -> str:
    if row["limit"] is None:
        return ""
    return f"{row['limit']:,}: {'kept' if row['params'] <= row['limit'] else 'BROKEN'}"


def _paper(paper: Json) -> str:
    accuracy = [f"{100 * paper['accuracy']:.2f} %"] if "accuracy" in paper else []
    params = [f"{paper['params']:,} parameters"] if "params" in paper else []
    return ", ".join((*accuracy, *params))


def _target(row: Json) -> str:
    if row["target"] is None:
        return ""
    wanted = f"{100 * row['target']:.2f} %"
    if row["mean"] is None:
        return wanted
    short = row["target"] - row["mean"]
    return f"{wanted}: reached" if short <= 1e-12 else f"{wanted}: missed by {100 * short:.2f} points"


def _against(row: Json, control: Json | None) -> str:
    if control is None:
        return ""
    found = gain(_by_seed(row), _by_seed(control))
    return "" if found is None else points(found.as_dict())


def _by_seed(row: Json) -> dict[int, float]:
    return dict(zip(row["seeds"], row["accuracies"], strict=True))


def _each(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):,.0f}" if values else ""


# ------------------------------------------------------------------ ablate


def ablated(content: Json) -> Sheet:
    """Return an ablation's rows beside its control."""
    columns = (
        "row", "validation", "gain", "95 % interval", "so it is", "test", "gain on test", "parameters", "MACs", "time",
        "memory, MB",
    )  # fmt: skip
    rows = tuple(tuple(_ablated_row(row)) for row in content["rows"])
    counts = sorted({len(row["seeds"]) for row in content["rows"] if row["seeds"]})
    seeds = " or ".join(map(str, counts)) or "no"
    notes = (
        f"{seeds} seed{'s' * (counts != [1])} per row; accuracies: mean ± standard deviation. Gain: points against the "
        "control, seed by seed, ± standard error. Time: of an epoch, against the control's.",
        *(f"{row['name']}: {row['status']}: {row['reason']}" for row in content["rows"] if row["reason"]),
        *(f"{row['name']}: warning: {text}" for row in content["rows"] for text in row["warnings"]),
        *content["notes"],
    )
    steps = content["recipe"]["max_steps"]
    length = f"{content['recipe']['epochs']} epochs" if steps is None else f"at most {steps} steps"
    title = f"Ablation of {content['model']} on {content['data']}, {length}"
    return Sheet(title, columns, rows, (7, 8, 9, 10), notes, spare=("95 % interval",)).without_empty()


def _ablated_row(row: Json) -> Iterator[str]:
    found, test = row["gain"], row["test"] or {}
    yield row["name"]
    yield spread(row["mean"], row["deviation"]) if row["seeds"] else row["status"]
    yield points(found) if found else ""
    yield f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}" if found and found["low"] is not None else ""
    yield found["verdict"] if found else ""
    yield spread(test["mean"], test["deviation"]) if test else ""
    yield points(test["gain"]) if test.get("gain") else ""
    yield _count(row["params"])
    yield _count(row["macs"])
    yield f"x {row['time_ratio']:.2f}" if row["time_ratio"] is not None else ""
    yield f"{row['peak_memory_bytes'] / 2**20:,.0f}" if row["peak_memory_bytes"] else ""


# ------------------------------------------------------------------ cells


def spread(mean: float, deviation: float | None) -> str:
    """Write an accuracy with its standard deviation, in percent."""
    return f"{100 * mean:.2f} %" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f} %"


def points(found: Json) -> str:
    """Write a gain with its standard error, in points."""
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.2f}"
    return f"{100 * found['mean']:+.2f}{error}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
