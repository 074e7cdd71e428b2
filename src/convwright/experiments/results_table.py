"""Tables of `reproduce` and `ablate`, for a terminal and as Markdown, from the content of their ``result.json``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from convwright.experiments.statistics import gain_of
from convwright.plots import Point, Series, heat, lines, scatter
from convwright.tables import Json, Sheet


def reproduced(content: Json) -> Sheet:
    """Return an experiment's rows beside the paper's numbers: those trained, those counted, and what follows."""
    title = f"{content['name']} ({content['size']}): {content['title']}"
    trained = [row for row in content["rows"] if not _only_counted(row)]
    counted = [row for row in content["rows"] if _only_counted(row)]
    concluded = content.get("conclusion") or {"tables": ()}
    if concluded.get("complete") and concluded["tables"]:
        first, *more = map(Sheet.from_dict, concluded["tables"])
        return replace(first, title=f"{title}; {first.title}", more=tuple(more))
    sheets = (
        *([_trained(trained, title)] if trained or not counted else []),
        *([_counted(counted, "Counted, not trained" if trained else title)] if counted else []),
        *map(Sheet.from_dict, concluded["tables"]),
    )
    return replace(sheets[0], more=sheets[1:])


def _only_counted(row: Json) -> bool:
    return "recipe" in row and row["recipe"] is None


def _trained(rows: Sequence[Json], title: str) -> Sheet:
    by_name = {row["name"]: row for row in rows}
    columns = (
        "row", "made by", "search", "parameters", "limit", "MACs", "paper", "ours", "seeds", "target",
        "against its control, points", "seconds per seed", "processor seconds per seed", "note",
    )  # fmt: skip
    cells = tuple(tuple(_reproduced_row(row, by_name)) for row in rows)
    notes = (
        "Ours: test accuracy of the last epoch, mean ± standard deviation over seeds. "
        "Against its control: mean difference seed by seed ± its standard error.",
    )
    return Sheet(title, columns, cells, (3, 5, 8), notes).without_empty()


def _counted(rows: Sequence[Json], title: str) -> Sheet:
    columns = (
        "row", "made by", "search", "units", "Q", "parameters", "MACs", "expected parameters", "expected MACs",
        "beside the expected", "note",
    )  # fmt: skip
    cells = tuple(
        (
            row["name"],
            made_by(row),
            searched_by(row),
            "-".join(map(str, row["units"] or ())),
            f"{row['facts']['q_sum']:.3f}" if row["facts"] else "",
            _count(row["params"]),
            _count(row["macs"]),
            _count(row["paper"].get("params")),
            f"{row['paper']['mmacs']} M" if "mmacs" in row["paper"] else _count(row["paper"].get("macs")),
            counts_beside(row, row["paper"]) if row["params"] is not None else "not counted yet",
            row["note"],
        )
        for row in rows
    )
    return Sheet(title, columns, cells, (4, 5, 6, 7, 8)).without_empty()


def counts_beside(counts: Json, paper: Json) -> str:
    """Say whether counts are the expected ones: ``equal``, or by how much each differs; "" if none was expected.

    Args:
        counts: Of a counted row: ``params``, ``macs``, ``units`` and ``facts``.
        paper: What is expected: ``params``, ``macs`` and ``units`` exactly; ``mmacs`` (millions) and ``q_sum``, as
            texts, to their digits.
    """
    told = [_difference(name, counts, paper[name]) for name in _COMPARED if name in paper]
    different = [words for words in told if words]
    return "; ".join(different) if different else "equal" if told else ""


_COMPARED = ("params", "macs", "mmacs", "q_sum", "units")


def _difference(name: str, counts: Json, wanted: Any) -> str:
    """Say how one count differs from what is expected; "" if it does not."""
    if name in ("params", "macs"):
        what = "parameters" if name == "params" else "MACs"
        return "" if counts[name] == wanted else f"{what} {counts[name] - wanted:+,}"
    if name == "units":
        what, found, wanted = "units", "-".join(map(str, counts["units"])), "-".join(map(str, wanted))
    else:
        what, number = ("MMACs", counts["macs"] / 1e6) if name == "mmacs" else ("Q", counts["facts"]["q_sum"])
        found = f"{number:.{len(wanted.partition('.')[2])}f}"
    return "" if found == wanted else f"{what} {found}, not {wanted}"


def made_by(row: Json) -> str:
    """Say how a row's network was made, where designs or edits had a part in it."""
    form = row.get("form")
    if not form:
        return ""
    if row.get("same_as"):
        return f"the same network as {row['same_as']}"
    depths = form["options"].get("depths")
    units = [f"units {'-'.join(map(str, depths))}"] if depths else []
    names = [edit["operator"] if edit["edit"] == "replace" else edit["edit"] for edit in form["edits"]]
    edits = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
    return ", ".join((*units, *edits)) or "nothing changed"


def searched_by(row: Json) -> str:
    """Say what the searches that decided a row's network cost, all trials together; "" where there was none."""
    told = []
    for found in row.get("searches") or ():
        trials = len(found["trials"])
        told.append(
            f"{found['method']}, {trials} trial{'s' * (trials != 1)}: {found['seconds']:,.0f} s, {found['images']:,} "
            f"images, {found['image_macs'] / 1e12:.3g} T image-MACs"
        )
    return "; ".join(told)


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
    yield made_by(row)
    yield searched_by(row)
    yield _count(row["params"])
    yield _limit(row) if done else ""
    yield _count(row["macs"])
    yield _paper(row["paper"])
    yield spread(row["mean"], row["deviation"]) if done else "not trained yet"
    yield str(len(row["seeds"])) if done else ""
    yield _target(row)
    control = by_name.get(row["control"])
    found = gain_of(row, control) if control is not None else None
    yield "" if found is None else points(found.as_dict())
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
