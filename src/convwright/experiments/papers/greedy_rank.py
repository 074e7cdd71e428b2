"""``greedy-rank``: do short trainings order networks as long ones do? Random allocations of equal MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from convwright.experiments.designs.search_design import At, Tried
from convwright.experiments.papers.greedy import BASES, LESS, random_of, recipe_of
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.experiments.statistics import LEAST, NOTE, correlated, said
from convwright.plots import Point, scatter
from convwright.tables import Json, Sheet

NETWORKS = 14
_SEED = 2108  # of the draws; allocation i has the seed 2108 + i
_WORDS = ("short training, new weights", "short training, inherited weights")


def conclude(content: Json) -> Conclusion:
    """Return how well each score that a search would see orders the networks by their accuracy after full training."""
    rows = [row for row in content["rows"] if row["mean"] is not None and None not in _scores(row)]
    if len(rows) < LEAST:
        return Conclusion()
    accuracy = np.array([row["mean"] for row in rows])
    predictors: Mapping[str, Callable[[Json], float | None]] = {
        _WORDS[0]: lambda row: _scores(row)[0],
        _WORDS[1]: lambda row: _scores(row)[1],
        "MACs": lambda row: row["macs"],
        "parameters": lambda row: row["params"],
    }
    rhos = {name: correlated([value(row) for row in rows], accuracy) for name, value in predictors.items()}
    spent = {
        name: (f"{found['image_macs'] / 1e12:.3g} T", f"{found['seconds']:,.0f}")
        for name, found in zip(_WORDS, rows[0]["searches"], strict=True)
    }
    cells = tuple((name, *said(rho), *spent.get(name, ("", ""))) for name, rho in rhos.items())
    columns = ("predictor", "rank correlation", "95 % interval", "image-MACs of all", "seconds of all")
    notes = (
        NOTE,
        "Costs: of the short trainings of all networks together, those of the untouched network before inheriting "
        "among them.",
    )
    table = Sheet(f"What predicts accuracy, {len(rows)} networks of equal MACs", columns, cells, (1, 3, 4), notes)
    values = {"networks": len(rows), "spearman": rhos}
    return Conclusion((table,), values, {"greedy-rank": _picture(rows, rhos[_WORDS[0]])})


def _scores(row: Json) -> tuple[float | None, ...]:
    """Return the scores of a row's network in both ways to train shortly."""
    searches = row.get("searches") or ()
    if len(searches) != len(_WORDS):
        return (None, None)
    number = int(row["name"].rpartition("-")[2])
    return tuple([trial["score"] for trial in found["trials"] if trial["edits"]][number] for found in searches)


def _picture(rows: Sequence[Json], found: Mapping[str, float] | None) -> str:
    middle = fmean(row["mean"] for row in rows)
    points = [
        Point(
            row["name"], 100 * (_scores(row)[0] or 0.0), 100 * (row["mean"] - middle), 100 * (row["deviation"] or 0.0)
        )
        for row in rows
    ]
    rho = "" if found is None else f", rank correlation {found['rho']:+.2f}"
    title = f"{len(rows)} random allocations of equal MACs: short and full training{rho}"
    return scatter(
        points, title, "validation accuracy after the short training, %", f"accuracy less {middle:.1%}, points"
    )


@experiment(
    "greedy-rank",
    title="Do short trainings order networks as full ones do? Random allocations of equal MACs, CIFAR-10",
    source="A test of ours: how Liu et al. 2021 score candidates is not known; ours are scored as in greedy",
    conclude=conclude,
)
def greedy_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per allocation, a network that two searches tried: from new and from inherited weights."""
    base = BASES["resnet"]
    less = max(1, base.trial_steps[size] // LESS)
    count = 4 if size == "quick" else NETWORKS
    fresh = random_of(base, size, _SEED, samples=count)
    inherited = random_of(base, size, _SEED, samples=count, trial_steps=less, trial_weights="inherit")
    return tuple(
        Row(
            f"allocation-{number:02d}",
            base.model,
            "cifar10",
            recipe_of(base, size),
            (0, 1, 2) if size == "full" else (0,),
            base.options,
            (At(base.side), Tried(fresh, number, (inherited,))),
            fresh=True,
        )
        for number in range(count)
    )
