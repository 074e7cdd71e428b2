"""``convwright analyze --conflicts``: a short training, and which layers conflict, over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from convwright.runs.load import Shape, load_model_and_data
from convwright.tables import add_row, new_table
from convwright.training import train
from convwright.training.probes.bundles import conflict_probe
from convwright.training.progress import tell
from convwright.training.recipe.recipe import as_recipe

_MOMENTS = 8  # within each epoch
_SHADES = "░▒▓█"
_CLEAN, _DIVERGED = "·", "!"


def conflict_map(
    model: str,
    data: str,
    *,
    epochs: int = 1,
    recipe: str | Path | None = None,
    seed: int = 0,
    input_shape: str | Shape | None = None,
    data_dir: Path | None = None,
    weights: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a network for a short time and say where and when its layers conflict.

    Args:
        model: As for `read`.
        data: As for `load_data`.
        epochs: Of the training.
        recipe: A preset's name or a .yaml file.
        seed: Of weights and training.
        input_shape: Images are resized to it.
        data_dir: Where named data sets lie.
        weights: What to start from.
        progress: Whether training shows how far it is.

    Returns:
        What the probe ``bundles`` found, at the start, eight times in each epoch and at its end; with ``model``,
        ``data`` and ``epochs``. Plain JSON values.

    Raises:
        ConvwrightError: Whatever is wrong with network, data or recipe; the training diverged.
    """
    chosen = as_recipe(recipe).updated(epochs=epochs, seed=seed)
    opened = load_model_and_data(
        model, data, input_shape=input_shape, data_dir=data_dir, recipe=chosen, seed=seed, needs_val=False,
        weights=weights,
    )  # fmt: skip
    for line in opened.remarks:
        tell(line)
    chosen = opened.recipe
    every = max(1, math.ceil(len(opened.data.train) / chosen.batch_size) // _MOMENTS)
    name = f"bundles-every-{every}"
    conflict_probe(name, every=every)
    trained = train(opened.arch.model, opened.data, chosen, probes=[name], test=False, progress=progress)
    found = trained.probes["bundles"]
    return {"model": opened.arch.source, "data": opened.data.name, "epochs": epochs, **found}


def shade(excess: float | None) -> str:
    """Return the mark of a share of samples in conflict; None: it diverged."""
    if excess is None:
        return _DIVERGED
    if excess <= 0:
        return _CLEAN
    return _SHADES[min(len(_SHADES) - 1, int(excess * len(_SHADES)))]


def conflict_tables(found: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Yield the map as a table of shades, layers by time, and what it says."""
    times, samples = found["times"], found["samples"]
    title = f"Conflicts of {samples} training images, layers by time (steps {times[0]['step']} to {times[-1]['step']})"
    numbers = ("bundles", "in conflict", "entropy")
    table = new_table(title, "layer", "what", "time", *numbers, numbers=numbers)
    for place, point in enumerate(found["points"]):
        column = [row[place] for row in found["excess"]]
        entropy = found["entropy"][-1][place]
        add_row(
            table,
            point["block"],
            point["role"],
            "".join(map(shade, column)),
            str(found["count"][-1][place]),
            str(found["in_conflict"][-1][place]),
            "diverged" if entropy is None else f"{entropy:.3f}",
        )
    yield table
    shades = f"{_SHADES} up to a quarter, half, three quarters, all of the images"
    yield Text(f"{_CLEAN} none, {shades}, {_DIVERGED} diverged")
    yield Text(_summary(found))
    for block, reason in found["skipped"].items():
        yield Text(f"{block}: {reason}")


def _summary(found: Mapping[str, Any]) -> str:
    own: Mapping[str, int] = found["own"]
    bad = [n for n, place in own.items() if any(row[place] is None or row[place] > 0 for row in found["excess"])]
    if not bad:
        return f"None of {len(own)} blocks conflicted (residual blocks are judged by their branch)."
    return (
        f"{len(bad)} of {len(own)} blocks conflicted at some time, {bad[0]} first in order; residual blocks are judged "
        "by their branch. `--method conflicts` removes such blocks."
    )
