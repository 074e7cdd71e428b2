"""``3drf-rank``: does Q predict accuracy? Random distributions of one number of units, each trained for as long."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from convwright.runs.experiment_tables import Sheet
from convwright.runs.experiments.cifar_small import cifar_recipe
from convwright.runs.experiments.experiment import Conclusion, Row, Size, experiment
from convwright.runs.scatter import Point, scatter

Json = Mapping[str, Any]
Numbers = NDArray[np.float64]

_EPOCHS = {"quick": 1, "standard": 3, "full": 30}
_OPTIONS = {"width": 0.125}
_RESAMPLES = 2000
_LEAST = 4  # networks, below which a rank correlation says nothing

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
    "Q, effective fields": lambda row: row["facts"]["q_effective"],
    "parameters": lambda row: row["params"],
    "MACs": lambda row: row["macs"],
    "depth": lambda row: row["facts"]["depth"],
}


def conclude(content: Json) -> Conclusion:
    """Return how well each predictor orders the networks of a family by their accuracy.

    Args:
        content: Of ``result.json``; rows without result or facts are left out.

    Returns:
        A table, the numbers, and a picture per family of Q beside accuracy.
    """
    values: dict[str, Any] = {}
    cells: list[tuple[str, ...]] = []
    pictures = {}
    for family in FAMILIES:
        rows = [row for row in content["rows"] if row["name"].startswith(f"{family}-") and _complete(row)]
        if len(rows) < _LEAST:
            continue
        accuracy = np.array([row["mean"] for row in rows])
        found = {name: _judged([value(row) for row in rows], accuracy) for name, value in _PREDICTORS.items()}
        values[family] = {"networks": len(rows), "spearman": found}
        cells += [(family, str(len(rows)), name, *_said(rho)) for name, rho in found.items()]
        pictures[f"3drf-rank-{family}"] = _picture(family, rows, found["Q, sum"])
    notes = (
        "Spearman's rank correlation with the mean accuracy over seeds; 1: the same order, -1: the reverse order. "
        f"Interval: 95 %, by {_RESAMPLES:,} bootstrap samples of networks. Noise between seeds lowers every value.",
    )
    columns = ("family", "networks", "predictor", "rank correlation", "95 % interval")
    table = Sheet("What predicts accuracy", columns, tuple(cells), (1, 3), notes)
    return Conclusion((table,) if cells else (), values, pictures)


def _complete(row: Json) -> bool:
    return row["mean"] is not None and bool(row.get("facts"))


def _judged(predictor: Sequence[float | None], accuracy: Numbers) -> dict[str, float] | None:
    """Return rho and its interval; None where the predictor says nothing: one value for all, or none for some."""
    if any(value is None for value in predictor) or len(set(predictor)) == 1:
        return None
    numbers = np.array(predictor, dtype=np.float64)
    chosen = np.random.default_rng(0).integers(0, len(numbers), (_RESAMPLES, len(numbers)))
    drawn = spearman(numbers[chosen], accuracy[chosen])
    drawn = drawn[np.isfinite(drawn)]  # a sample of equal values has none
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rho": float(spearman(numbers[None], accuracy[None])[0]), "low": float(low), "high": float(high)}


def spearman(x: Numbers, y: Numbers) -> Numbers:
    """Return Spearman's rank correlation of each row, (samples, n) twice -> (samples,); nan where a row is constant."""
    one, two = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    scale = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((one * two).sum(1) / np.where(scale > 0, scale, np.nan), dtype=np.float64)


def _said(found: Mapping[str, float] | None) -> tuple[str, str]:
    if found is None:
        return "the same for all", ""
    return f"{found['rho']:+.2f}", f"{found['low']:+.2f} to {found['high']:+.2f}"


def _picture(family: str, rows: Sequence[Json], found: Mapping[str, float] | None) -> str:
    middle = sum(row["mean"] for row in rows) / len(rows)
    points = [
        Point(
            row["name"].removeprefix(f"{family}-"),
            row["facts"]["q_sum"],
            100 * (row["mean"] - middle),
            100 * (row["deviation"] or 0.0) / math.sqrt(len(row["seeds"])),
        )
        for row in rows
    ]
    network = FAMILIES[family][0].partition(":")[2]
    rho = "" if found is None else f", rank correlation {found['rho']:+.2f}"
    title = f"{network}, {len(rows)} distributions of its units: Q and accuracy{rho}"
    return scatter(points, title, "Q, sum of the stages' shares", f"accuracy less the mean ({middle:.1%}), points")


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
