"""``conetv2-rank``: does the quality of trained kernels predict accuracy? Random widths, each trained for as long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from convwright.experiments.designs.design import Drawn
from convwright.experiments.papers.conetv2 import recipe_of
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.experiments.search_pictures import beside_accuracy
from convwright.experiments.statistics import LEAST, NOTE, correlated, said
from convwright.tables import Json, Sheet

NETWORKS = 32
_FIRST_SEED = 2110  # of the draws; network i has the seed 2110 + i
_LOW, _HIGH = 0.25, 1.5  # factors of widths
_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 2, "full": 30}
_OPTIONS: Mapping[Size, Mapping[str, Any]] = {"quick": {"width": 0.25}, "standard": {"width": 0.5}, "full": {}}

# Predictor -> its value of a row, None where there is none. Qualities are means over the seeds, as accuracies are.
_PREDICTORS: Mapping[str, Callable[[Json], float | None]] = {
    "QC, corrected": lambda row: _mean(row, "qc"),
    "QC, as published": lambda row: _mean(row, "qc_parity"),
    "rank": lambda row: _mean(row, "rank"),
    "knowledge gain": lambda row: _mean(row, "knowledge_gain"),
    "training loss (lower first)": lambda row: -fmean(row["train_losses"]),
    "parameters": lambda row: row["params"],
    "MACs": lambda row: row["macs"],
}


def conclude(content: Json) -> Conclusion:
    """Return how well each predictor orders the networks by their accuracy, by itself and at equal MACs."""
    rows = [row for row in content["rows"] if row["mean"] is not None and all(row.get("qualities") or [None])]
    if len(rows) < LEAST:
        return Conclusion()
    accuracy = np.array([row["mean"] for row in rows])
    macs = [float(row["macs"]) for row in rows]
    columns = {name: [value(row) for row in rows] for name, value in _PREDICTORS.items()}
    found = {name: correlated(values, accuracy) for name, values in columns.items()}
    partial = {name: correlated(values, accuracy, macs) for name, values in columns.items() if name != "MACs"}
    cells = tuple(
        (name, *said(rho), *(said(partial[name]) if name in partial else ("", ""))) for name, rho in found.items()
    )
    headings = ("predictor", "rank correlation", "95 % interval", "given MACs", "95 % interval of it")
    notes = (
        NOTE,
        "Given MACs: the partial correlation, of what MACs do not explain of either; so a quality that only tells wide "
        "networks from narrow ones is near 0 there.",
    )
    table = Sheet(f"What predicts accuracy, {len(rows)} networks", headings, cells, (1, 3), notes)
    values = {"networks": len(rows), "spearman": found, "given_macs": partial}
    named = {row["name"]: (_mean(row, "qc") or 0.0, row) for row in rows}
    title = f"resnet20, {len(rows)} random widths: QC and accuracy"
    picture = beside_accuracy(named, title, "QC of the network, corrected", found["QC, corrected"])
    return Conclusion((table,), values, {"conetv2-rank": picture})


def _mean(row: Json, name: str) -> float | None:
    values = [quality[name] for quality in row["qualities"]]
    return fmean(values) if values else None


@experiment(
    "conetv2-rank",
    title="Does channel quality predict accuracy? Random widths of ResNet-20, CIFAR-10",
    source="A test of ours: Wang et al. 2021 choose widths by QC; no correlation with accuracy is published",
    conclude=conclude,
)
def conetv2_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per network; each group's width is its own times 0.25 to 1.5, log-uniform, drawn by a seed."""
    return tuple(
        Row(
            f"widths-{number:02d}",
            "zoo:resnet20",
            "cifar10",
            recipe_of(size, _EPOCHS[size]),
            (0, 1, 2) if size == "full" else (0,),
            _OPTIONS[size],
            design=(Drawn(_FIRST_SEED + number, _LOW, _HIGH),),
            fresh=True,
            quality=True,
        )
        for number in range(NETWORKS)
    )
