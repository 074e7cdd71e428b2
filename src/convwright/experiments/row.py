"""What an experiment is: rows to train, each beside the number that the paper gives.

A new experiment is one new file here: a function from a size to its rows, under ``@experiment``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from torch import nn

from convwright.edits import Edit
from convwright.experiments.designs.design import Design
from convwright.tables import Sheet
from convwright.training import ImageData, Recipe

Size = Literal["quick", "standard", "full"]
SIZES: tuple[Size, ...] = get_args(Size)


class PaperStudy(Protocol):
    """What is done with a network after its training, as data: a frozen dataclass."""

    kind: ClassVar[str]

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return what is found, as plain JSON values.

        Args:
            model: The trained network; it stays as it is.
            data: What it was trained on, with the images that were held out.
            recipe: It was trained by, with its seed.
            found: By the probes during its training.
        """


@dataclass(frozen=True)
class Row:
    """One line of the table: a network, data and a recipe, trained once per seed; or a network that is only counted.

    Attributes:
        name: Unique in its experiment; also names its folder.
        model: As for `read`.
        data: As for `load_data`. All training images are used: nothing is selected by looking at results. "" for a
            row that is only counted.
        recipe: How it is trained; the seed in it is replaced. None: it is only counted, on its usual input.
        seeds: One training each.
        options: Arguments of the network, e.g. ``{"blur": True}``.
        design: What methods decide about the network when the row is carried out, in order.
        edits: Applied to the created network before it is trained. Operators that replace layers are drawn, not
            fitted to weights that mean nothing yet.
        fresh: All weights are drawn after the edits, so that an edited network begins like any other of its shape.
        quality: Whether the quality of its trained kernels is recorded.
        held: Share of the training images that is held out, for a study to decide on.
        shape: (c, h, w) that the images are brought to; None: as they are.
        probes: What is observed during the training.
        study: What is done with the trained network.
        paper: What the source reports, by name: ``accuracy`` (0..1) and what else it gives. The counts of a row that
            is only counted are compared: ``params`` and ``macs`` exactly, ``mmacs`` (a text, millions) to its digits.
        target: The accuracy (0..1) that the mean has to reach; None: none was set.
        limit: Most trainable parameters allowed; None: no limit.
        note: One line for the reader of the table.
        control: The row that this one is compared with; "" for none.
    """

    name: str
    model: str
    data: str
    recipe: Recipe | None
    seeds: tuple[int, ...] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)
    design: tuple[Design, ...] = ()
    edits: tuple[Edit, ...] = ()
    fresh: bool = False
    quality: bool = False
    held: float = 0.0
    shape: tuple[int, int, int] | None = None
    probes: tuple[str, ...] = ()
    study: PaperStudy | None = None
    paper: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None
    limit: int | None = None
    note: str = ""
    control: str = ""

    @property
    def trainings(self) -> int:
        """How often it is trained."""
        return len(self.seeds) if self.recipe is not None else 0


# Written out, so that an experiment stays what it was when a default of `Recipe` changes.
_START: Mapping[str, Any] = {
    "batch_size": 128,
    "weight_decay": 0.0,
    "crop_padding": 0,
    "hflip": False,
    "label_smoothing": 0.0,
    "precision": "fp32",
    "memory_format": "channels_last",
    "val_fraction": 0.0,
}


def start(epochs: int, **fields: Any) -> Recipe:
    """Return what the recipes of all experiments begin with, changed in some fields.

    Batches of 128, float32, no augmentation or regularisation, unless a recipe says otherwise; and all training images.
    """
    return Recipe(**{"epochs": epochs, **_START, **fields})


def trial_fields(recipe: Recipe, held: float) -> dict[str, Any]:
    """Return the fields of the recipe of a search's trainings, which do without a share of the training images."""
    fields: dict[str, Any] = recipe.model_dump(mode="json", exclude_unset=True)
    del fields["epochs"]  # each trial says itself how long it is
    return {**fields, "val_fraction": held}


def seeds_of(size: Size, count: int = 3) -> tuple[int, ...]:
    """Return the seeds of a row: one at the size ``quick``, else `count`."""
    return (0,) if size == "quick" else tuple(range(count))


@dataclass(frozen=True)
class Conclusion:
    """What follows from all rows of an experiment together.

    Attributes:
        tables: Further tables.
        values: The same as plain JSON values.
        pictures: Name -> text of an SVG file.
        complete: Whether the tables tell all trained rows, so that the usual table of rows is left out.
    """

    tables: tuple[Sheet, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False


Rows = Callable[[Size], tuple[Row, ...]]
Conclude = Callable[[Mapping[str, Any]], Conclusion]


@dataclass(frozen=True)
class Experiment:
    """A named table of a paper.

    Attributes:
        name: As in ``convwright reproduce NAME``.
        title: One line.
        source: The paper, and what of it is confirmed or reconstructed.
        rows: The rows at a size: ``quick`` takes minutes, ``standard`` hours on two cores, ``full`` is the
            paper's own size. It reads no network, so that experiments can be listed at once.
        conclude: What follows from the content of ``result.json``, whatever is finished of it: rows without a result
            are left out; None: nothing.
    """

    name: str
    title: str
    source: str
    rows: Rows
    conclude: Conclude | None = None


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, *, title: str, source: str, conclude: Conclude | None = None) -> Callable[[Rows], Rows]:
    """Return a decorator that files a function of the size as an experiment."""

    def file(rows: Rows) -> Rows:
        EXPERIMENTS[name] = Experiment(name, title, source, rows, conclude)
        return rows

    return file
