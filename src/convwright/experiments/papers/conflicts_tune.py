"""``conflicts-tune``: a deep network without shortcuts loses the layers that conflict, beside depths made by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from convwright.experiments.designs.search_design import Searched
from convwright.experiments.features import CostStudy
from convwright.experiments.papers.conflicts_lesion import published
from convwright.experiments.results_table import beside_cost, spread
from convwright.experiments.row import Conclusion, Row, Size, experiment, trial_fields
from convwright.experiments.statistics import spread_of
from convwright.tables import Json, Sheet

NETWORK = "zoo:vgg120"
# Blocks of two convolutions per group: the published start, at the standard size a quarter as wide; and depths that
# somebody might choose. Drawn weights of 24 blocks have a conflict in the last one only, those of 59 in 25.
_START: Mapping[Size, tuple[int, ...]] = {"quick": (1, 2, 4, 1), "standard": (3, 12, 41, 3), "full": (3, 12, 41, 3)}
_BY_HAND: Mapping[Size, tuple[tuple[int, ...], ...]] = {
    "quick": ((1, 1, 1, 1),),
    "standard": ((1, 1, 1, 1), (2, 2, 3, 2)),
    "full": ((1, 1, 1, 1), (2, 2, 3, 2), (3, 6, 12, 3)),
}
_WIDTH: Mapping[Size, float] = {"quick": 0.125, "standard": 0.25, "full": 1.0}
_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 1, "full": 119}
# Checks come after each of the first epochs; a trial without a conflict in these is not trained on: the rows do that.
_WINDOW: Mapping[Size, int] = {"quick": 1, "standard": 1, "full": 10}
_HELD: Mapping[Size, float] = {"quick": 0.1, "standard": 0.5, "full": 0.1}
_EXECUTIONS = 3
_STEPS = 10


def search_of(size: Size, execution: int, check: str, restart: str) -> Searched:
    """Return one execution of the method: other weights, another order of images.

    Args:
        size: Of the experiment.
        execution: From 0.
        check: ``after`` each epoch of the window, or ``before`` each, so that new weights are looked at first.
        restart: ``fresh`` or ``inherit``.
    """
    options = {"epochs": _WINDOW[size], "window": _WINDOW[size], "check": check, "restart": restart}
    return Searched(
        "conflicts", options, "", trial_fields(published(size, _EPOCHS[size], _STEPS), _HELD[size]), 100 * execution
    )


@experiment(
    "conflicts-tune",
    title="Deep networks without shortcuts, layers that conflict removed, beside depths made by hand; CIFAR-10",
    source="Peer, Stabinger and Rodriguez-Sanchez 2021 (arXiv 2103.04331): start, rule and course after the published "
    "code (third version), its tables are not available; the crop, and weights that are kept, are ours",
    conclude=lambda content: conclude(content),
)
def conflicts_tune(size: Size) -> tuple[Row, ...]:
    """Return the start, one row per execution, with new and with kept weights, and depths made by hand."""
    return tuple(_rows(size))


def _rows(size: Size) -> Iterator[Row]:
    seeds = tuple(range(1 if size == "quick" else _EXECUTIONS))
    begin: dict[str, Any] = {"width": _WIDTH[size], "depths": list(_START[size])}
    first = Row(
        "start", NETWORK, "cifar10", published(size, _EPOCHS[size], _STEPS), seeds, begin, fresh=True,
        study=CostStudy(NETWORK, begin), note="the network before anything is removed",
    )  # fmt: skip
    yield first
    for check, restart, word, note in (
        ("after", "fresh", "tuned", "looked at after each epoch, begun anew after each removal (third version)"),
        ("before", "fresh", "early", "looked at before each epoch, new weights too (as the second version did)"),
        ("before", "inherit", "kept", "the same with weights kept in the search (ours), new ones here as in all rows"),
    ):
        for execution in seeds:
            design = (search_of(size, execution, check, restart),)
            row = replace(first, name=f"{word}-{execution}", seeds=(execution,), design=design)
            yield replace(row, control="start", note=note)
    for depths in _BY_HAND[size]:
        row = replace(first, name=f"hand-{'-'.join(map(str, depths))}", options={**begin, "depths": list(depths)})
        yield replace(row, control="start", note="made by hand")


# ------------------------------------------------------------------ what follows


def conclude(content: Json) -> Conclusion:
    """Return accuracy and costs of each way to a depth, executions taken together."""
    kinds: dict[str, list[Json]] = {}
    for row in content["rows"]:
        if row["mean"] is not None and all(row.get("studies") or [None]):
            kind = row["name"] if row["name"].startswith("hand-") else row["name"].partition("-")[0]
            kinds.setdefault(kind, []).append(row)
    if not kinds:
        return Conclusion()
    values = {kind: _values(rows) for kind, rows in kinds.items()}
    base = values.get("start")
    cells = tuple((kind, *_cells(found, base)) for kind, found in values.items())
    columns = (
        "network", "blocks per group", "layers", "test accuracy", "parameters", "MACs", "activation memory",
        "latency, one image", "time beside the start", "search, trials", "search, s",
    )  # fmt: skip
    notes = (
        "Accuracy: mean ± standard deviation over executions or seeds; costs: means over them. Blocks per group: one "
        "list per execution. Time beside the start: measured in turns with it.",
        *_said(kinds),
    )
    table = Sheet("Depth by conflicts", columns, cells, (2, 4, 5, 6, 7, 8, 9, 10), notes).without_empty()
    title = "Networks without shortcuts on CIFAR-10: accuracy beside millions of MACs"
    return Conclusion((table,), values, {"conflicts-tune": beside_cost(kinds, title, per="training")})


def _values(rows: Sequence[Json]) -> dict[str, Any]:
    accuracies = [accuracy for row in rows for accuracy in row["accuracies"]]
    studies = [study for row in rows for study in row["studies"]]
    searches = [found for row in rows for found in row.get("searches") or ()]
    return {
        "accuracies": accuracies,
        **spread_of(accuracies),
        "groups": [groups_of(row) for row in rows],
        **{key: statistics.fmean(each[key] for each in studies) for key in studies[0]},
        "trials": [len(found["trials"]) for found in searches],
        "search_seconds": [found["seconds"] for found in searches],
    }


def groups_of(row: Json) -> list[int]:
    """Return the blocks of each group: those it was built with, less those that were removed.

    Args:
        row: Of ``result.json``.
    """
    built = list(row["options"]["depths"])
    for edit in (row.get("form") or {"edits": ()})["edits"]:
        built[int(edit["target"].partition(".")[0].removeprefix("layer")) - 1] -= 1
    return built


def _cells(found: Json, base: Json | None) -> tuple[str, ...]:
    def beside(key: str, unit: float, word: str) -> str:
        share = f" ({found[key] / base[key]:.0%})".replace("%", " %") if base is not None else ""
        return f"{found[key] / unit:,.4g}{word}{share}"

    return (
        "; ".join("-".join(map(str, groups)) for groups in found["groups"]),
        f"{found['layers']:.4g}",
        spread(found["mean"], found["deviation"]),
        beside("params", 1e3, " k"),
        beside("macs", 1e6, " M"),
        beside("activations", 1e3, " kB"),
        f"{found['latency'] / 1e6:.3g} ms",
        f"{found['ratio']:.2f}",
        f"{statistics.fmean(found['trials']):.1f}" if found["trials"] else "",
        f"{statistics.fmean(found['search_seconds']):,.0f}" if found["search_seconds"] else "",
    )


def _said(kinds: Mapping[str, Sequence[Json]]) -> Iterator[str]:
    """Yield what the searches say of their decisions; those that say the same, once."""
    named: dict[str, list[str]] = {}
    for row in (row for rows in kinds.values() for row in rows):
        for found in row.get("searches") or ():
            named.setdefault("; ".join(found["log"]), []).append(row["name"])
    for words, names in named.items():
        yield f"{', '.join(names)}: {words}."
