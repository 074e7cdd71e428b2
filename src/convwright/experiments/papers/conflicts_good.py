"""``conflicts-good``: 60 % of the layers without fine-tuning, of a network that stays as good as by plain training.

Declared before the first training. A row reaches the claim if its whole network is within 1 point of plain training of
the same length, by test images, and if what the greedy order takes out within 1 point of held-out accuracy is at least
60 % of the layers and costs at most 1 point on the test images. Order and number of blocks rest on held-out images.
First every row with one seed (``--seeds 1``); then the second seed of plain training and of the row that takes out most
within 1 point of its control by held-out images.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from convwright.experiments.papers import conflicts_lesion
from convwright.experiments.papers.cifar_small import cifar_recipe
from convwright.experiments.row import Conclusion, Row, Size, experiment
from convwright.experiments.studies.block_removal import WITH_FIRSTS, RemovalStudyOfAll
from convwright.tables import Json, Sheet

# Blocks per group: 76 layers is of the published list, 120 the published network; and a sketch.
_DEPTHS: Mapping[Size, tuple[int, ...]] = {"quick": (1, 2, 3, 2), "standard": (3, 6, 25, 3), "full": (3, 12, 41, 3)}
_WIDTH: Mapping[Size, float] = {"quick": 0.125, "standard": 0.25, "full": 1.0}
_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 30, "full": 120}
_LONG: Mapping[Size, int] = {"quick": 2, "standard": 45, "full": 180}
_QUICK_STEPS = 12  # of an epoch
_HELD = 0.1
_STUDIES: Mapping[Size, RemovalStudyOfAll] = {
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
    conclude=lambda content: conclude(content),
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
    return tuple(_row(size, *way) for way in ways)


def _row(size: Size, name: str, control: str, techniques: Mapping[str, Any], note: str) -> Row:
    epochs = (_LONG if name.endswith("-long") else _EPOCHS)[size]
    steps = {"max_steps": _QUICK_STEPS * epochs} if size == "quick" else {}
    return Row(
        name, "zoo:resnet120", "cifar10", cifar_recipe(epochs, techniques=techniques, **steps),
        (0,) if size == "quick" else (0, 1), {"width": _WIDTH[size], "depths": list(_DEPTHS[size])},
        held=_HELD, study=_STUDIES[size], control=control, note=note,
    )  # fmt: skip


# ------------------------------------------------------------------ what follows


def conclude(content: Json) -> Conclusion:
    """Return whether a row reaches the claim, beside all orders of `conflicts-lesion`."""
    rows = {row["name"]: row for row in content["rows"] if any(row.get("studies") or ())}
    facts = {
        (name, order): _facts(row, rows.get(row["control"]), order) for name, row in rows.items() for order in _CLAIMED
    }
    more = conflicts_lesion.conclude({"rows": list(rows.values())})
    # Its own verdict does not ask whether the whole network is good.
    tables = [dataclasses.replace(table, notes=table.notes[:1]) for table in more.tables]
    values = {**more.values, "claim": {f"{name}, {order}": found for (name, order), found in facts.items()}}
    pictures = {
        name.replace("conflicts-lesion-", "conflicts-good-"): text for name, text in more.pictures.items()
    }  # fmt: skip
    return Conclusion(tuple([_claim(facts), *tables] if facts else tables), values, pictures)


def _facts(row: Json, control: Json | None, order: str) -> dict[str, Any]:
    """Return what the claim is about, means over seeds; of the whole network's difference, over seeds of both."""
    pairs = [(s["chosen"][order][str(_TOLERANCE)], s) for s in row["studies"] if order in s["chosen"]]
    if not pairs:
        return {"layers": None, "lost": None, "behind": None, "reached": False}
    layers = statistics.fmean(s.get("layers_per_block", 2) * one["blocks"] / s["layers"] for one, s in pairs)
    lost = statistics.fmean(s["test"] - one["test"] for one, s in pairs)
    behind = _behind(row, control) if row["control"] else 0.0
    good = behind is not None and behind <= _TOLERANCE
    reached = good and layers >= conflicts_lesion.GOAL and lost <= _TOLERANCE
    return {"layers": layers, "lost": lost, "behind": behind, "reached": reached}


def _behind(row: Json, control: Json | None) -> float | None:
    """Return by how much the control is better, over the seeds that both have; None where there are none."""
    known = dict(zip(control["seeds"], control["accuracies"], strict=True)) if control else {}
    found = [known[seed] - own for seed, own in zip(row["seeds"], row["accuracies"], strict=True) if seed in known]
    return statistics.fmean(found) if found else None


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
        f"{100 * conflicts_lesion.GOAL:.0f} % of the layers, at most 1 test point lost.",
        f"Reached by: {', '.join(reached) or 'none'}.",
    )
    return Sheet("The claim", columns, tuple(tuple(each) for each in cells), (1, 3, 4), notes)


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
