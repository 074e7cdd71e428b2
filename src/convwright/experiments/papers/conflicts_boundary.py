"""``conflicts-boundary``: fully connected networks by depth and width; where they conflict they do not learn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from convwright.experiments.features import LayerConflicts
from convwright.experiments.row import Conclusion, Row, Size, experiment, start
from convwright.plots import boundary
from convwright.tables import Json, Sheet
from convwright.training import Recipe

_DEPTHS: Mapping[Size, tuple[int, ...]] = {
    "quick": (2, 12),
    "standard": (5, 10, 20, 30, 50, 75, 100, 150),
    "full": (5, 10, 20, 30, 40, 50, 60, 75, 90, 105, 120, 150),
}
_WIDTHS: Mapping[Size, tuple[int, ...]] = {
    "quick": (5, 40),
    "standard": (5, 10, 15, 25, 50, 75, 100),
    "full": (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 75, 100, 125, 150),
}
_EPOCHS: Mapping[Size, int] = {"quick": 1, "standard": 1, "full": 10}
_WORDS = {"start": "a layer conflicts before training", "end": "a layer conflicts after training"}


def _recipe(size: Size) -> Recipe:
    """Return the published optimizer's: rectified Adam inside lookahead, a constant rate, batches of 64."""
    return start(
        _EPOCHS[size], optimizer="radam", optimizer_options={"decoupled_weight_decay": True}, lr=1e-3, batch_size=64,
        schedule="constant", warmup=0.0, weight_decay=1e-2, memory_format="contiguous", techniques={"lookahead": {}},
        **({"max_steps": 20} if size == "quick" else {}),
    )  # fmt: skip


@experiment(
    "conflicts-boundary",
    title="Fully connected networks by depth and width on MNIST: accuracy, and which have layers that conflict",
    source="Peer, Stabinger and Rodriguez-Sanchez 2021 (arXiv 2011.02956), figure 1: 176 networks, of which no numbers "
    "could be read; recipe after the published code, fewer epochs",
    conclude=lambda content: conclude(content),
)
def conflicts_boundary(size: Size) -> tuple[Row, ...]:
    """Return a row per depth and width."""
    recipe = _recipe(size)
    return tuple(
        Row(
            f"deep-{depth}-wide-{width}", "zoo:perceptron", "mnist", recipe, (0,), {"width": width, "depth": depth},
            probes=("bundles",), study=LayerConflicts(),
        )
        for depth in _DEPTHS[size]
        for width in _WIDTHS[size]
    )  # fmt: skip


def conclude(content: Json) -> Conclusion:
    """Return the grid as a table and a picture, and how accurate networks with and without conflicts are."""
    known = {
        (row["options"]["depth"], row["options"]["width"]): (row["mean"], row["studies"][0])
        for row in content["rows"]
        if row["mean"] is not None and (row.get("studies") or [None])[0]
    }
    if not known:
        return Conclusion()
    depths, widths = (sorted(set(each)) for each in zip(*known, strict=True))
    cells = tuple(
        (str(depth), *(_cell(known[depth, width]) if (depth, width) in known else "" for width in widths))
        for depth in depths
    )
    values = {moment: _compared(list(known.values()), moment) for moment in _WORDS}
    notes = (
        "Test accuracy, %; entropy of the last layer in nats, before → after training; the first layer that conflicts, "
        "before → after, - for none; ! for numbers that are not finite.",
        *(_said(moment, values[moment]) for moment in _WORDS),
    )
    table = Sheet("Hidden layers (rows) and width (columns)", ("layers", *map(str, widths)), cells, (), notes)
    placed = {(depths.index(depth), widths.index(width)): found for (depth, width), found in known.items()}
    shades = {place: accuracy for place, (accuracy, _) in placed.items()}
    groups = [
        (words, {place for place, (_, study) in placed.items() if study[moment]["first"] is not None})
        for moment, words in _WORDS.items()
    ]
    title = "Test accuracy on MNIST, %, by hidden layers and width, and where a layer conflicts"
    return Conclusion((table,), values, {"conflicts-boundary": boundary(depths, widths, shades, groups, title)})


def _cell(found: tuple[float, Json]) -> str:
    accuracy, study = found
    entropies = " → ".join("!" if study[m]["entropy"] is None else f"{study[m]['entropy']:.2f}" for m in _WORDS)
    first = " → ".join(str(study[m]["first"] or "-") for m in _WORDS)
    return f"{100 * accuracy:.1f}; {entropies}; {first}"


def _compared(found: Sequence[tuple[float, Json]], moment: str) -> dict[str, Any]:
    """Return number and mean accuracy of networks with a conflict at a moment, and without."""
    parts = {
        name: [accuracy for accuracy, study in found if (study[moment]["first"] is not None) == conflicts]
        for name, conflicts in (("conflicting", True), ("clean", False))
    }
    return {
        name: {"networks": len(part), "mean": statistics.fmean(part) if part else None, "most": max(part, default=None),
               "least": min(part, default=None)}
        for name, part in parts.items()
    }  # fmt: skip


def _said(moment: str, found: Mapping[str, Json]) -> str:
    told = [
        f"{part['networks']} {words}, mean accuracy {100 * part['mean']:.1f} % ({100 * part['least']:.1f} to "
        f"{100 * part['most']:.1f} %)"
        for words, part in (("with conflicts", found["conflicting"]), ("without", found["clean"]))
        if part["networks"]
    ]
    return f"{'Before' if moment == 'start' else 'After'} training: {'; '.join(told)}."
