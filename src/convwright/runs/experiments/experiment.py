"""What an experiment is: rows to train, each beside the number that the paper gives.

A new experiment is one new file here: a function from a size to its rows, under ``@experiment``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from convwright.errors import ConvwrightError, look_up
from convwright.training import Recipe

Size = Literal["quick", "standard", "full"]
SIZES: tuple[Size, ...] = get_args(Size)


@dataclass(frozen=True)
class Row:
    """One line of the table: a network, data and a recipe, trained once per seed.

    Attributes:
        name: Unique in its experiment; also names its folder.
        model: As for `read`.
        data: As for `load_data`. All training images are used: nothing is selected by looking at results.
        recipe: How it is trained; the seed in it is replaced.
        seeds: One training each.
        options: Arguments of the network, e.g. ``{"blur": True}``.
        paper: What the source reports, by name: ``accuracy`` (0..1) and what else it gives.
        target: The accuracy (0..1) that the mean has to reach; None: none was set.
        limit: Most trainable parameters allowed; None: no limit.
        note: One line for the reader of the table.
        control: The row that this one is compared with; "" for none.
    """

    name: str
    model: str
    data: str
    recipe: Recipe
    seeds: tuple[int, ...] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None
    limit: int | None = None
    note: str = ""
    control: str = ""


Rows = Callable[[Size], tuple[Row, ...]]


@dataclass(frozen=True)
class Experiment:
    """A named table of a paper.

    Attributes:
        name: As in ``convwright reproduce NAME``.
        title: One line.
        source: The paper, and what of it is confirmed or reconstructed.
        rows: The rows at a size: ``quick`` takes minutes, ``standard`` hours on two cores, ``full`` is the
            paper's own size.
    """

    name: str
    title: str
    source: str
    rows: Rows


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, *, title: str, source: str) -> Callable[[Rows], Rows]:
    """Return a decorator that files a function of the size as an experiment."""

    def file(rows: Rows) -> Rows:
        EXPERIMENTS[name] = Experiment(name, title, source, rows)
        return rows

    return file


def experiment_named(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        ConvwrightError: There is none of that name; the nearest ones are listed.
    """
    return look_up(name, EXPERIMENTS, "experiment", ConvwrightError)
