"""Do the numbers that searches go by order networks as their accuracy does? Random networks, each trained for as long.

``conetv2-rank`` asks it of the quality of trained kernels, ``3drf-rank`` of the score Q of receptive fields, and
``greedy-rank`` of short trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from convwright.experiments.designs.design import Drawn
from convwright.experiments.designs.search_design import At, Tried
from convwright.experiments.papers import conetv2, greedy
from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.results_table import beside_accuracy
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.experiments.statistics import LEAST, NOTE, correlated, said
from convwright.tables import Json, Sheet

Predictors = Mapping[str, Callable[[Json], float | None]]  # by name, its value of a row; None where there is none
_COSTS: Predictors = {"parameters": lambda row: row["params"], "MACs": lambda row: row["macs"]}


def _correlations(
    rows: Sequence[Json], predictors: Predictors, given: Sequence[float] | None = None
) -> dict[str, dict[str, float] | None]:
    accuracy = np.array([row["mean"] for row in rows])
    return {name: correlated([value(row) for row in rows], accuracy, given) for name, value in predictors.items()}


# ------------------------------------------------------------------ the quality of trained kernels

NETWORKS = 32
_FIRST_SEED = 2110  # of the draws; network i has the seed 2110 + i
_LOW, _HIGH = 0.25, 1.5  # factors of widths
_QUALITY_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 2, "full": 30}
_QUALITY_OPTIONS: Mapping[Size, Mapping[str, Any]] = {"quick": {"width": 0.25}, "standard": {"width": 0.5}, "full": {}}
# Qualities are means over the seeds, as accuracies are.
_QUALITIES: Predictors = {
    "QC, corrected": lambda row: _mean(row, "qc"),
    "QC, as published": lambda row: _mean(row, "qc_parity"),
    "rank": lambda row: _mean(row, "rank"),
    "knowledge gain": lambda row: _mean(row, "knowledge_gain"),
    "training loss (lower first)": lambda row: -fmean(row["train_losses"]),
    **_COSTS,
}


def conclude_quality(content: Json) -> Conclusion:
    """Return how well each predictor orders the networks by their accuracy, by itself and at equal MACs."""
    rows = [row for row in content["rows"] if row["mean"] is not None and all(row.get("qualities") or [None])]
    if len(rows) < LEAST:
        return Conclusion()
    found = _correlations(rows, _QUALITIES)
    others = {name: value for name, value in _QUALITIES.items() if name != "MACs"}
    partial = _correlations(rows, others, [float(row["macs"]) for row in rows])
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
    conclude=conclude_quality,
)
def conetv2_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per network; each group's width is its own times 0.25 to 1.5, log-uniform, drawn by a seed."""
    recipe, seeds = conetv2.recipe_of(size, _QUALITY_EPOCHS[size]), (0, 1, 2) if size == "full" else (0,)
    return tuple(
        Row(
            f"widths-{number:02d}", "zoo:resnet20", "cifar10", recipe, seeds, _QUALITY_OPTIONS[size],
            design=(Drawn(_FIRST_SEED + number, _LOW, _HIGH),), fresh=True, quality=True,
        )
        for number in range(NETWORKS)
    )  # fmt: skip


# ------------------------------------------------------------------ receptive fields

_FIELD_EPOCHS = {"quick": 1, "standard": 3, "full": 30}

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

_FIELDS: Predictors = {
    "Q, sum": lambda row: row["facts"]["q_sum"],
    "Q, sum of logarithms": lambda row: row["facts"]["q_log"],
    "Q, mean logarithm over positions": lambda row: row["facts"].get("q_positions"),
    "Q, effective fields": lambda row: row["facts"]["q_effective"],
    **_COSTS,
    "depth": lambda row: row["facts"]["depth"],
}


def conclude_fields(content: Json) -> Conclusion:
    """Return how well each predictor orders the networks of a family by their accuracy."""
    values: dict[str, Any] = {}
    cells: list[tuple[str, ...]] = []
    pictures = {}
    for family, (model, _) in FAMILIES.items():
        named = [row for row in content["rows"] if row["name"].startswith(f"{family}-")]
        rows = [row for row in named if row["mean"] is not None and row.get("facts")]
        if len(rows) < LEAST:
            continue
        found = _correlations(rows, _FIELDS)
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
    conclude=conclude_fields,
)
def three_d_receptive_field_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per distribution, all trained alike."""
    recipe = cifar_recipe(_FIELD_EPOCHS[size], **({"max_steps": 40} if size == "quick" else {}))
    return tuple(
        Row(
            f"{family}-{units}",
            model,
            "cifar10",
            recipe,
            (0,) if size == "quick" else (0, 1),
            {"width": 0.125, "depths": [int(n) for n in units.split("-")]},
        )
        for family, (model, all_units) in FAMILIES.items()
        for units in all_units
    )


# ------------------------------------------------------------------ short trainings

ALLOCATIONS = 14
_ALLOCATION_SEED = 2108  # of the draws; allocation i has the seed 2108 + i
_WORDS = ("short training, new weights", "short training, inherited weights")
_SCORES: Predictors = {_WORDS[0]: lambda row: _scores(row)[0], _WORDS[1]: lambda row: _scores(row)[1]}


def conclude_scores(content: Json) -> Conclusion:
    """Return how well each score that a search would see orders the networks by their accuracy after full training."""
    rows = [row for row in content["rows"] if row["mean"] is not None and None not in _scores(row)]
    if len(rows) < LEAST:
        return Conclusion()
    rhos = _correlations(rows, {**_SCORES, **dict(reversed(list(_COSTS.items())))})
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
    named = {row["name"]: (100 * (_scores(row)[0] or 0.0), row) for row in rows}
    title = f"{len(rows)} random allocations of equal MACs: short and full training"
    words = "validation accuracy after the short training, %"
    picture = beside_accuracy(named, title, words, rhos[_WORDS[0]])
    return Conclusion((table,), values, {"greedy-rank": picture})


def _scores(row: Json) -> tuple[float | None, ...]:
    """Return the scores of a row's network in both ways to train shortly."""
    searches = row.get("searches") or ()
    if len(searches) != len(_WORDS):
        return (None, None)
    number = int(row["name"].rpartition("-")[2])
    return tuple([trial["score"] for trial in found["trials"] if trial["edits"]][number] for found in searches)


@experiment(
    "greedy-rank",
    title="Do short trainings order networks as full ones do? Random allocations of equal MACs, CIFAR-10",
    source="A test of ours: how Liu et al. 2021 score candidates is not known; ours are scored as in greedy",
    conclude=conclude_scores,
)
def greedy_rank(size: Size) -> tuple[Row, ...]:
    """Return one row per allocation, a network that two searches tried: from new and from inherited weights."""
    base = greedy.BASES["resnet"]
    less = max(1, base.trial_steps[size] // greedy.LESS)
    count = 4 if size == "quick" else ALLOCATIONS
    recipe, seeds = greedy.recipe_of(base, size), (0, 1, 2) if size == "full" else (0,)
    fresh = greedy.random_of(base, size, _ALLOCATION_SEED, samples=count)
    inherited = greedy.random_of(base, size, _ALLOCATION_SEED, samples=count, trial_steps=less, trial_weights="inherit")
    return tuple(
        Row(
            f"allocation-{number:02d}", base.model, "cifar10", recipe, seeds, base.options,
            (At(base.side), Tried(fresh, number, (inherited,))), fresh=True,
        )
        for number in range(count)
    )  # fmt: skip
