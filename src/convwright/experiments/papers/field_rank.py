"""``3drf-rank``: does Q predict accuracy? Random distributions of one number of units, each trained for as long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convwright.experiments.papers.cifar_small import cifar_recipe
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.experiments.search_pictures import beside_accuracy
from convwright.experiments.statistics import LEAST, NOTE, correlated, said
from convwright.tables import Json, Sheet

_EPOCHS = {"quick": 1, "standard": 3, "full": 30}
_OPTIONS = {"width": 0.125}

# Family -> network, and units per stage: 24 of all distributions (495 and 35), drawn without looking at anything, by
# random.Random(2021).sample over all of them in lexical order; written out, so that they stay.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "plain": (
        "zoo:vgg16-bn",
        (
            "1-1-3-1-7", "1-1-5-3-3", "1-1-7-1-3", "1-3-1-2-6", "1-3-1-4-4", "1-4-4-3-1", "1-5-2-4-1", "1-5-3-3-1",
            "1-6-2-3-1", "1-7-3-1-1", "2-2-1-6-2", "2-2-6-2-1", "2-3-3-3-2", "2-3-3-4-1", "2-6-2-1-2", "3-1-2-3-4",
            "3-2-2-4-2", "3-2-3-2-3", "4-6-1-1-1", "5-1-1-4-2", "5-1-5-1-1", "5-2-4-1-1", "5-3-2-2-1", "6-1-3-1-2",
        ),
    ),
    "residual": (
        "zoo:resnet18_cifar",
        (
            "1-1-2-4", "1-1-3-3", "1-1-4-2", "1-2-1-4", "1-2-3-2", "1-2-4-1", "1-3-1-3", "1-3-2-2", "1-4-2-1",
            "1-5-1-1", "2-1-1-4", "2-1-3-2", "2-1-4-1", "2-2-1-3", "2-2-3-1", "2-4-1-1", "3-1-1-3", "3-1-2-2",
            "3-1-3-1", "3-2-2-1", "4-1-1-2", "4-1-2-1", "4-2-1-1", "5-1-1-1",
        ),
    ),
}  # fmt: skip

# Predictor -> its value of a row.
_PREDICTORS: Mapping[str, Callable[[Json], float | None]] = {
    "Q, sum": lambda row: row["facts"]["q_sum"],
    "Q, sum of logarithms": lambda row: row["facts"]["q_log"],
    "Q, mean logarithm over positions": lambda row: row["facts"].get("q_positions"),
    "Q, effective fields": lambda row: row["facts"]["q_effective"],
    "parameters": lambda row: row["params"],
    "MACs": lambda row: row["macs"],
    "depth": lambda row: row["facts"]["depth"],
}


def conclude(content: Json) -> Conclusion:
    """Return how well each predictor orders the networks of a family by their accuracy."""
    values: dict[str, Any] = {}
    cells: list[tuple[str, ...]] = []
    pictures = {}
    for family, (model, _) in FAMILIES.items():
        named = [row for row in content["rows"] if row["name"].startswith(f"{family}-")]
        rows = [row for row in named if row["mean"] is not None and row.get("facts")]
        if len(rows) < LEAST:
            continue
        accuracy = np.array([row["mean"] for row in rows])
        found = {name: correlated([value(row) for row in rows], accuracy) for name, value in _PREDICTORS.items()}
        values[family] = {"networks": len(rows), "spearman": found}
        cells += [(family, str(len(rows)), name, *said(rho)) for name, rho in found.items()]
        drawn = {row["name"].removeprefix(f"{family}-"): (row["facts"]["q_sum"], row) for row in rows}
        title = f"{model.partition(':')[2]}, {len(rows)} distributions of its units: Q and accuracy"
        words = "Q, sum of the stages' shares"
        pictures[f"3drf-rank-{family}"] = beside_accuracy(drawn, title, words, found["Q, sum"])
    columns = ("family", "networks", "predictor", "rank correlation", "95 % interval")
    table = Sheet("What predicts accuracy", columns, tuple(cells), (1, 3), (NOTE,))
    return Conclusion((table,) if cells else (), values, pictures)


@experiment(
    "3drf-rank",
    title="Does Q predict accuracy? Random distributions of units over stages, CIFAR-10",
    source="A test of ours: Wang, Feng, Peng and Ding 2021 claim that the 3D receptive field estimates how good a "
    "network is; their formula is reconstructed",
    conclude=conclude,
)
def three_d_receptive_field_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per distribution, all trained alike."""
    recipe = cifar_recipe(_EPOCHS[size], **({"max_steps": 40} if size == "quick" else {}))
    return tuple(
        Row(
            f"{family}-{units}",
            model,
            "cifar10",
            recipe,
            (0,) if size == "quick" else (0, 1),
            {**_OPTIONS, "depths": [int(n) for n in units.split("-")]},
        )
        for family, (model, all_units) in FAMILIES.items()
        for units in all_units
    )
