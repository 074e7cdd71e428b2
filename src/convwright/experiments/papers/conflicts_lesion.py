"""``conflicts-lesion``: how many blocks of a trained network can go without fine-tuning, and how early that shows.

``conflicts-good``: 60 % of the layers without fine-tuning, of a network that stays as good as by plain training.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.row import Conclusion, Row, Size, experiment, seeds_of
from convwright.experiments.statistics import gain_of
from convwright.experiments.studies.block_removal import WITH_FIRSTS, RemovalStudy, RemovalStudyOfAll
from convwright.plots import Series, heat, lines
from convwright.tables import Json, Sheet
from convwright.training import Recipe
from convwright.training.probes.bundles import conflict_probe

# Blocks per group of the published residual network: 120 layers; 50, as in its list of smaller ones; and a sketch.
_DEPTHS: Mapping[Size, tuple[int, ...]] = {"quick": (1, 2, 3, 2), "standard": (3, 6, 12, 3), "full": (3, 12, 41, 3)}
_PLAIN_DEPTHS: Mapping[Size, tuple[int, ...]] = {
    "quick": (1, 1, 2, 1),
    "standard": (3, 12, 41, 3),
    "full": (3, 12, 41, 3),
}
_WIDTH: Mapping[Size, float] = {"quick": 0.125, "standard": 0.25, "full": 1.0}
_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 4, "full": 120}
_EVERY: Mapping[Size, int] = {"quick": 4, "standard": 50, "full": 500}
_PLAIN_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 1, "full": 120}
_HELD = 0.1
_QUICK_STEPS = 12
_STUDIES: Mapping[Size, RemovalStudy] = {
    "quick": RemovalStudy(100, 200, 200, 100, 64, draws=2, tune_steps=2, every=4),
    "standard": RemovalStudy(tune_steps=175),
    "full": RemovalStudy(2000, 3000, 10000, 2000, draws=15, tune_steps=1000, every=1),
}
_NEARLY = 0.9  # share of the blocks whose flags are those of the end
GOAL = 0.6  # share of the layers, after the paper's "around 60 %"
_ORDERS = ("conflict", "graded conflict", "own loss", "greedy", "greedy, statistics anew", "random", WITH_FIRSTS)


def _probe(size: Size) -> str:
    return f"bundles-every-{_EVERY[size]}"


for _size in _EVERY:
    conflict_probe(_probe(_size), every=_EVERY[_size], samples=64 if _size == "quick" else 512)


def _recipe(size: Size, **techniques: Mapping[str, Any]) -> Recipe:
    steps = {"max_steps": _QUICK_STEPS} if size == "quick" else {}
    return cifar_recipe(_EPOCHS[size], techniques=techniques, **steps)


def published(size: Size, epochs: int, quick: int = _QUICK_STEPS) -> Recipe:
    """Return the recipe of the published code: rectified Adam inside lookahead, a constant rate, batches of 64.

    Args:
        size: Of the experiment.
        epochs: Of the training.
        quick: Steps at the size ``quick``.
    """
    return cifar_recipe(
        epochs, optimizer="radam", optimizer_options={"decoupled_weight_decay": True}, lr=1e-3, batch_size=64,
        schedule="constant", warmup=0.0, weight_decay=1e-2, label_smoothing=0.0, techniques={"lookahead": {}},
        **({"max_steps": quick} if size == "quick" else {}),
    )  # fmt: skip


@experiment(
    "conflicts-lesion",
    title="Blocks of trained networks that can go without fine-tuning, CIFAR-10, and how early that shows",
    source="Peer, Stabinger and Rodriguez-Sanchez 2021 (arXiv 2103.04331): its abstract says around 60 % of layers; "
    "networks and the order by conflict after the published code, its tables are not available; recipes, all other "
    "orders and the choice on held-out images are ours",
    conclude=lambda content: conclude(content),
)
def conflicts_lesion(size: Size) -> tuple[Row, ...]:
    """Return one row per way to train the residual network, and the network without shortcuts."""
    common: dict[str, Any] = {"held": _HELD, "probes": (_probe(size),), "study": _STUDIES[size]}
    seeds = seeds_of(size)
    options = {"width": _WIDTH[size], "depths": list(_DEPTHS[size])}
    network = "zoo:resnet120"
    dropped = _recipe(size, stochastic_depth={"rate": 0.5, "profile": "uniform"})
    rows = (
        Row(
            "residual", network, "cifar10", _recipe(size), seeds, options, **common,
            note="trained as usual",
        ),
        Row(
            "residual-dropped", network, "cifar10", dropped, seeds, options, **common, control="residual",
            note="each branch left out for half of the images in training (stochastic depth)",
        ),
        Row(
            "residual-zero", network, "cifar10", _recipe(size), seeds[: len(seeds) if size == "full" else 1],
            {**options, "zero_last": True}, **common,
            control="residual", note="each branch begins as 0",
        ),
        *(
            Row(
                f"residual-{word}", network, "cifar10", _recipe(size, branch_sparsity={"strength": strength}), seeds,
                {**options, "zero_last": True}, **common, control="residual",
                note=f"each branch begins as 0 and is pulled back to 0, strength {strength} (ours: branch_sparsity)",
            )
            for word, strength in (("sparse", 0.02), ("sparser", 0.03))
        ),
        Row(
            "no-shortcuts", "zoo:vgg120", "cifar10", published(size, _PLAIN_EPOCHS[size]), seeds,
            {"width": _WIDTH[size], "depths": list(_PLAIN_DEPTHS[size])}, **common,
            note="120 layers, published recipe; none can be left out at inference: when do they conflict?",
        ),
    )  # fmt: skip
    if size != "full":
        return rows
    recipe = published(size, _EPOCHS[size])
    return (
        *rows,
        replace(rows[0], name="residual-published", recipe=recipe, note="published recipe"),
        Row("resnet56-dropped", "zoo:resnet56", "cifar10", dropped, seeds, {}, **common, note="larger maps"),
    )


# ------------------------------------------------------------------ what follows


def conclude(content: Json) -> Conclusion:
    """Return what can go by each order, what is left when it is removed, and how early flags agree."""
    rows = [(row, [s for s in row.get("studies") or () if s]) for row in content["rows"]]
    studied = [(row, found) for row, studies in rows if (found := [s for s in studies if "chosen" in s])]
    flagged = [(row, found) for row, studies in rows if (found := [s["flags"] for s in studies if s.get("flags")])]
    tables = [made for made in (_chosen(studied), _carried_out(studied), _early(flagged)) if made is not None]
    values = {
        "removable": {row["name"]: _shares(studies) for row, studies in studied},
        "settled": {row["name"]: [settled(each) for each in flags] for row, flags in flagged},
    }
    pictures = {f"conflicts-lesion-{row['name']}": _curves(row, studies) for row, studies in studied}
    pictures |= {f"conflicts-flags-{row['name']}": _flags(row, flags[0]) for row, flags in flagged}
    return Conclusion(tuple(tables), values, pictures)


def _shares(studies: Sequence[Json]) -> dict[str, Any]:
    """Return per order and tolerance: blocks, layers as a share, and the loss of test accuracy; a value per seed."""
    found: dict[str, Any] = {}
    for order in _ORDERS:
        for tolerance in studies[0]["chosen"].get(order, {}):
            chosen = [each["chosen"][order][tolerance] for each in studies]
            found.setdefault(order, {})[tolerance] = {
                "blocks": [one["blocks"] for one in chosen],
                "layers": [
                    each.get("layers_per_block", 2) * one["blocks"] / each["layers"]
                    for one, each in zip(chosen, studies, strict=True)
                ],
                "lost": [each["test"] - one["test"] for one, each in zip(chosen, studies, strict=True)],
            }
    return found


def _chosen(studied: Sequence[tuple[Json, Sequence[Json]]]) -> Sheet | None:
    if not studied:
        return None
    cells: list[tuple[str, ...]] = []
    best, whole = (0.0, ""), 0.0
    for row, studies in studied:
        shares = _shares(studies)
        for order in (each for each in _ORDERS if each in shares):
            parts: list[str] = []
            for tolerance in ("0.005", "0.01"):
                one = shares.get(order, {}).get(tolerance)
                if one is None:
                    parts += ["", "", ""]
                    continue
                layers, lost = statistics.fmean(one["layers"]), statistics.fmean(one["lost"])
                parts += [_numbers(one["blocks"]), f"{layers:.0%}".replace("%", " %"), f"{100 * lost:+.2f}"]
                if lost <= 0.01 and layers > best[0]:
                    best = (layers, f"{row['name']}, {order}")
                    whole = statistics.fmean(each["test"] for each in studies)
            firsts = studies[0]["firsts"] if order == WITH_FIRSTS else ()
            cells.append((row["name"], order, str(len(studies[0]["removable"]) + len(firsts)), *parts))
    columns = (
        "row", "order", "blocks that could go", "within 0.5 point: blocks", "layers", "test points lost",
        "within 1 point: blocks", "of layers", "points lost on test",
    )  # fmt: skip
    reached = "reached" if best[0] >= GOAL else "not reached"
    notes = (
        "Number of blocks: the most with a held-out accuracy within so much of the whole network's, one number per "
        "seed; no training afterwards. Layers: their share of all convolutions and the classifier, mean over seeds. "
        "Test points lost: what the test images say of that choice, mean over seeds.",
        f"Most layers with at most 1 test point lost: {best[0]:.0%} ({best[1] or 'none'}; that network has {whole:.1%} "
        f"with all layers); the aim of {GOAL:.0%} is {reached}.".replace("%", " %"),
    )
    return Sheet("What can go without fine-tuning", columns, tuple(cells), (2, 4, 5, 7, 8), notes)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


_COSTS = (
    ("layers", 1, ""),
    ("params", 1e3, " k"),
    ("macs", 1e6, " M"),
    ("activations", 1e3, " kB"),
    ("latency", 1e6, " ms"),
)


def _carried_out(studied: Sequence[tuple[Json, Sequence[Json]]]) -> Sheet | None:
    cells = []
    for row, studies in studied:
        done = [each["removed"] for each in studies if "removed" in each]
        if not done:
            continue
        costs = [
            f"{_mean(done, 'before', key) / unit:,.4g} → {_mean(done, 'after', key) / unit:,.4g}{word}"
            for key, unit, word in _COSTS
        ]
        ratio = statistics.fmean(each["latency_ratio"] for each in done)
        accuracies = [
            f"{100 * _mean(done, side, key):.2f} %" for key in ("test", "tuned") for side in ("before", "after")
        ]
        cells.append((row["name"], *costs, f"{ratio:.2f}", *accuracies))
    if not cells:
        return None
    columns = (
        "row", "layers", "parameters", "MACs", "activation memory", "latency, one image", "time ratio",
        "test accuracy, whole", "removed", "whole, trained on", "removed, trained on",
    )  # fmt: skip
    notes = (
        "Removed: what the greedy order gives within 1 point of held-out accuracy. Trained on: both networks for the "
        "same few steps by a falling rate. Means over seeds. Time ratio: measured in turns.",
    )
    return Sheet("Removed for good", columns, tuple(cells), tuple(range(6, 11)), notes)


def _mean(done: Sequence[Json], side: str, key: str) -> float:
    return statistics.fmean(each[side][key] for each in done)


def settled(flags: Json) -> dict[str, Any]:
    """Return from which step on the flags are those of the end: blocks that conflict, at each measurement.

    Args:
        flags: ``steps`` and, per step, ``excess`` of each block; None counts as a conflict.
    """
    marks = [[value is None or value > 0 for value in row] for row in flags["excess"]]
    alike = [statistics.fmean(a == b for a, b in zip(row, marks[-1], strict=True)) for row in marks]
    return {
        "start": sum(marks[0]),
        "end": sum(marks[-1]),
        "most": max(map(sum, marks)),
        "blocks": len(flags["blocks"]),
        "step": flags["steps"][_since(alike, 1.0)],
        "alike": alike[0],
        "nearly": flags["steps"][_since(alike, _NEARLY)],
        "steps": flags["steps"][-1],
    }


def _since(values: Sequence[float], least: float) -> int:
    """Return the place from which on all values are at least so much; the last place if only that one is."""
    return max((place + 1 for place, value in enumerate(values[:-1]) if value < least), default=0)


def _early(flagged: Sequence[tuple[Json, Sequence[Json]]]) -> Sheet | None:
    if not flagged:
        return None
    cells = []
    for row, flags in flagged:
        found = [settled(each) for each in flags]
        cells.append(
            (
                row["name"], str(found[0]["blocks"]),
                *(_numbers([each[key] for each in found]) for key in ("start", "most", "end")),
                _numbers([round(100 * each["alike"]) for each in found]),
                *(_numbers([each[key] for each in found]) for key in ("nearly", "step")),
                str(found[0]["steps"]),
            )
        )  # fmt: skip
    columns = (
        "row", "blocks", "conflict before training", "at most", "at the end", "alike before training, %",
        f"{_NEARLY:.0%} alike after step".replace("%", " %"), "settled after step", "of steps",
    )  # fmt: skip
    notes = (
        "Blocks that conflict, one number per seed. Alike: share of blocks whose flag is the one that it has at the "
        "end. Settled: the first measurement from which on all are.",
    )
    return Sheet("How early conflicts show", columns, tuple(cells), (1, 8), notes)


def _curves(row: Json, studies: Sequence[Json]) -> str:
    series = []
    for order in _ORDERS:
        curves = [each["curves"][order] for each in studies if order in each["curves"]]
        points = [(each[0][0], 100 * statistics.fmean(y for _, y in each)) for each in zip(*curves, strict=False)]
        if points:  # the mean curve, as far as all go
            series.append(Series(order, tuple(points)))
    title = f"{row['name']}: test accuracy without blocks, no training afterwards"
    return lines(series, title, "blocks left out", "test accuracy, %, mean over seeds")


def _flags(row: Json, flags: Json) -> str:
    rows = [(name, [line[place] for line in flags["excess"]]) for place, name in enumerate(flags["blocks"])]
    title = f"{row['name']}, seed {row['seeds'][0]}: share of {flags['samples']} images in conflict"
    return heat(rows, title, f"measurements, from the start to step {flags['steps'][-1]}")


# ------------------------------------------------------------------ of a network as good as by plain training

# Declared before the first training. A row reaches the claim if its whole network is within 1 point of plain training
# of the same length, by test images, and if what the greedy order takes out within 1 point of held-out accuracy is at
# least 60 % of the layers and costs at most 1 point on the test images. Order and number of blocks rest on held-out
# images. First every row with one seed (``--seeds 1``); then the second seed of plain training and of the row that
# takes out most within 1 point of its control by held-out images.

_GOOD_DEPTHS = {**_DEPTHS, "standard": (3, 6, 25, 3)}  # 76 layers: of the published list
_GOOD_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 30, "full": 120}
_LONG: Mapping[Size, int] = {"quick": 2, "standard": 45, "full": 180}
_GOOD_STUDIES: Mapping[Size, RemovalStudyOfAll] = {
    "quick": RemovalStudyOfAll(100, 200, 200, 100, 64, draws=2, every=4),
    "standard": RemovalStudyOfAll(1000, 4000, 2000, 1000, 512, tune_steps=100, every=3),
    "full": RemovalStudyOfAll(1000, 4000, 10000, 2000, draws=15, tune_steps=1000, every=1),
}
_TOLERANCE = 0.01
_CLAIMED = ("greedy", WITH_FIRSTS)  # without and with a stage's first block
_TAIL = {"since": 0.1, "until": 0.65}  # of the pull: the last third is free of it
_ENOUGH = 0.7  # share of the branches at 0: some more than the aim, since three of these cannot be removed


@experiment(
    "conflicts-good",
    title="60 % of the layers without fine-tuning, of a network as good as by plain training, CIFAR-10",
    source="Peer, Stabinger and Rodriguez-Sanchez 2021 (arXiv 2103.04331): its abstract says around 60 % of layers; "
    "networks after the published code; recipes, ways to train, orders and the choice on held-out images are ours",
    conclude=lambda content: conclude_good(content),
)
def conflicts_good(size: Size) -> tuple[Row, ...]:
    """Return one row per way to train one network, the control first: it is also the teacher."""
    folder = "conflicts-good" if size == "standard" else f"conflicts-good-{size}"
    teacher = f"runs/reproduce/{folder}/rows/plain-{{seed}}/model.safetensors"  # where `reproduce` puts it by itself
    full = {"strength": 0.03, **_TAIL, "enough": _ENOUGH}
    none: Mapping[str, Any] = {}
    ways: tuple[tuple[str, str, Mapping[str, Any], str], ...] = (
        ("plain", "", none, "trained as usual"),
        ("sparse", "plain", {"branch_sparsity": full},
         "branches pulled to 0 (strength 0.03) until 70 % of them are, at most over 0.1 to 0.65 of the steps"),
        ("distilled", "plain", {"branch_sparsity": full, "distillation": {"teacher": teacher}},
         "the same, and half of each target is what the plain network says"),
        ("sparse-weak", "plain", {"branch_sparsity": {"strength": 0.02, **_TAIL}},
         "branches pulled to 0 (strength 0.02) over 0.1 to 0.65 of the steps, however many get there"),
        ("dropped", "plain", {"stochastic_depth": {"rate": 0.5, "profile": "uniform", "rise": 0.65}},
         "branches left out, the share of images rising from 0 to a half over 0.65 of the steps"),
        ("decay", "plain", {"branch_decay": {"strength": 0.01}},
         "the scales that end a branch decay by 0.01 times the rate, and nothing else of the norms does"),
        ("plain-long", "", none, "trained as usual, half as long again"),
        ("sparse-long", "plain-long", {"branch_sparsity": full}, "as sparse, half as long again"),
    )  # fmt: skip
    return tuple(_good_row(size, *way) for way in ways)


def _good_row(size: Size, name: str, control: str, techniques: Mapping[str, Any], note: str) -> Row:
    epochs = (_LONG if name.endswith("-long") else _GOOD_EPOCHS)[size]
    steps = {"max_steps": _QUICK_STEPS * epochs} if size == "quick" else {}
    return Row(
        name, "zoo:resnet120", "cifar10", cifar_recipe(epochs, techniques=techniques, **steps),
        (0,) if size == "quick" else (0, 1), {"width": _WIDTH[size], "depths": list(_GOOD_DEPTHS[size])},
        held=_HELD, study=_GOOD_STUDIES[size], control=control, note=note,
    )  # fmt: skip


def conclude_good(content: Json) -> Conclusion:
    """Return whether a row reaches the claim, beside all orders of `conflicts-lesion`."""
    rows = {row["name"]: row for row in content["rows"] if any(row.get("studies") or ())}
    pairs = [(name, order) for name in rows for order in _CLAIMED]
    facts = {(name, order): _claim_facts(rows[name], rows.get(rows[name]["control"]), order) for name, order in pairs}
    more = conclude({"rows": list(rows.values())})
    # Its own verdict does not ask whether the whole network is good.
    tables = [replace(table, notes=table.notes[:1]) for table in more.tables]
    values = {**more.values, "claim": {f"{name}, {order}": found for (name, order), found in facts.items()}}
    pictures = {name.replace("conflicts-lesion-", "conflicts-good-"): text for name, text in more.pictures.items()}
    return Conclusion(tuple([_claim(facts), *tables] if facts else tables), values, pictures)


def _claim_facts(row: Json, control: Json | None, order: str) -> dict[str, Any]:
    """Return what the claim is about, means over seeds; of the whole network's difference, over seeds of both."""
    studies = [study for study in row["studies"] if order in study["chosen"]]
    if not studies:
        return {"layers": None, "lost": None, "behind": None, "reached": False}
    share = _shares(studies)[order][str(_TOLERANCE)]
    layers, lost = statistics.fmean(share["layers"]), statistics.fmean(share["lost"])
    found = gain_of(row, control) if control is not None else None
    behind = 0.0 if not row["control"] else None if found is None else -found.mean
    good = behind is not None and behind <= _TOLERANCE
    reached = good and layers >= GOAL and lost <= _TOLERANCE
    return {"layers": layers, "lost": lost, "behind": behind, "reached": reached}


def _claim(facts: Mapping[tuple[str, str], Json]) -> Sheet:
    cells: list[Sequence[str]] = []
    for (name, order), found in facts.items():
        numbers = ["", ""] if found["layers"] is None else [f"{100 * found['layers']:.0f} %", _points(found["lost"])]
        behind = "" if found["behind"] is None else _points(found["behind"])
        cells.append((name, behind, order, *numbers, "yes" if found["reached"] else "no"))
    reached = [f"{name} ({order})" for (name, order), found in facts.items() if found["reached"]]
    columns = ("row", "behind plain training, points", "order", "layers that go", "test points lost", "claim reached")
    notes = (
        "Behind: the whole network against plain training of the same length, test images. Layers that go: the most "
        "within 1 point of the whole network's accuracy on held-out images, no training afterwards, as a share of all "
        "convolutions and the classifier. Claim: at most 1 point behind, at least "
        f"{100 * GOAL:.0f} % of the layers, at most 1 test point lost.",
        f"Reached by: {', '.join(reached) or 'none'}.",
    )
    return Sheet("The claim", columns, tuple(tuple(each) for each in cells), (1, 3, 4), notes)


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
