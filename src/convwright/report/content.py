"""What a report says, without any form: the page, the Markdown and the JSON are made of this and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from convwright.ranking import ACCURACY, Metric
from convwright.runs.verdict import ResultWarning

State = Literal["same", "changed", "removed", "new"]
Number = int | float


@dataclass(frozen=True)
class Fact:
    """A name and what it is, both in words."""

    name: str
    value: str


@dataclass(frozen=True)
class Limit:
    """One term of the budget: ``macs <= 20.4M``, what was found, and whether it is met; None: not judged yet."""

    metric: str
    limit: str
    found: str
    met: bool | None


@dataclass(frozen=True)
class Compared:
    """One quantity of the untouched network and of the result.

    Attributes:
        name: What it is.
        before: Of the untouched network, in words; ``after`` likewise.
        after: Of the result.
        change: In words: ``-50.3%``, ``+1.20 points``.
        share: Result over untouched network, for costs; None otherwise.
        better: Whether the change is to the good; None where it is neither.
    """

    name: str
    before: str
    after: str
    change: str
    share: float | None = None
    better: bool | None = None


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: how many images judge it, and its accuracy (0..1) in the untouched network and in the result."""

    name: str
    images: int
    before: float
    after: float

    @property
    def points(self) -> float:
        """The change in points."""
        return 100 * (self.after - self.before)


@dataclass(frozen=True)
class LayerFacts:
    """One layer of one network.

    Attributes:
        name: Of the layer.
        kind: conv, linear, matmul or attention.
        channels: Of its output.
        size: Rows and columns of its output; empty where it has none.
        kernel: Rows and columns; empty where it has none.
        stage: Its stage; empty for the head.
        block: The smallest block around it; may be empty.
        macs: Per sample.
        params: Its own.
        group: The channel group of its output; empty where there is not exactly one.
        field: Rows and columns of the image that it sees; empty where it sees all.
        nothing_new: Whether its kernel sees nothing new.
        seconds: Measured alone; None where it was not.
    """

    name: str
    kind: str
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stage: str
    block: str
    macs: int
    params: int
    group: str
    field: tuple[int, ...]
    nothing_new: bool
    seconds: float | None = None


@dataclass(frozen=True)
class LayerChange:
    """A layer before and after; one of the two is None where it was removed or is new.

    Attributes:
        name: Of the layer.
        state: What happened to it.
        before: As it was.
        after: As it is.
        coupled: The letter of the channel group that changed its width; may be empty.
    """

    name: str
    state: State
    before: LayerFacts | None
    after: LayerFacts | None
    coupled: str = ""


@dataclass(frozen=True)
class BlockChange:
    """A block's layers; a name without words where layers stand alone."""

    name: str
    state: State
    layers: tuple[LayerChange, ...]


@dataclass(frozen=True)
class StageChange:
    """A stage: its name, its map before and after in words (``16x16``), its blocks."""

    name: str
    before: str
    after: str
    blocks: tuple[BlockChange, ...]


@dataclass(frozen=True)
class Coupling:
    """Channels that changed together: a letter, the group, its sizes, and the layers that give them."""

    letter: str
    group: str
    before: int
    after: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Networks:
    """Before and after, side by side."""

    before_input: tuple[int, ...]
    after_input: tuple[int, ...]
    stages: tuple[StageChange, ...]
    couplings: tuple[Coupling, ...]

    @property
    def layers(self) -> tuple[LayerChange, ...]:
        """All layers, in order."""
        return tuple(layer for stage in self.stages for block in stage.blocks for layer in block.layers)

    @property
    def sides(self) -> tuple[LayerFacts, ...]:
        """All layers of both networks."""
        return tuple(side for change in self.layers for side in (change.before, change.after) if side is not None)

    @property
    def timed(self) -> bool:
        """Whether any layer was measured."""
        return any(side.seconds is not None for side in self.sides)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: From 0.
        role: base, baseline or candidate.
        words: What it was.
        status: done, stopped, failed or unfinished.
        score: Validation accuracy, 0..1, or another metric so that more is better; None where there is none.
        stderr: Its standard error.
        costs: Per sample, by metric.
        epochs: Asked for.
        parent: The trial that it started from.
        seconds: Wall time.
        front: Whether no other beats it in score and in every cost of the objective, or every limited one, at once.
        ended: Whether a search for several networks trained it to the end.
        chosen: Whether it is the result.
        note: Why it failed, or the like.
    """

    number: int
    role: str
    words: str
    status: str
    score: float | None
    stderr: float
    costs: Mapping[str, int]
    epochs: int
    parent: int | None
    seconds: float
    front: bool = False
    ended: bool = False
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Heat:
    """A table of numbers that is drawn as shades.

    Attributes:
        title: What it is of.
        rows: Names.
        columns: Names.
        values: One list per row; None where there is no value.
        reference: What the values of a row are a share of; empty where they stand for themselves.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Number | None, ...], ...]
    reference: tuple[int, ...] = ()


@dataclass(frozen=True)
class Curve:
    """A training, epoch by epoch: losses (nats), accuracies (0..1) or values of another metric; None: there is none."""

    name: str
    train_loss: tuple[float | None, ...]
    val_loss: tuple[float | None, ...]
    train_acc: tuple[float | None, ...]
    val_acc: tuple[float | None, ...]


@dataclass(frozen=True)
class Decision:
    """What a method decided and why; the phase may be empty."""

    phase: str
    reason: str


@dataclass(frozen=True)
class Content:
    """What a report says, in the order in which it is read.

    Attributes:
        title: The network.
        folder: Where the run lies.
        finished: Whether the run is.
        status: One sentence: what came out, or how far it is.
        warnings: What is wrong with the result, why probably, and what to do next.
        asked: Network, data, budget, method, seed, ...
        limits: The budget's terms.
        compared: The result beside the untouched network.
        classes: The largest loss first.
        classes_of: The part that the classes are judged on.
        deviation: What the ± stands for.
        networks: Before and after.
        metrics: Costs that the trials can be drawn over, those of the objective and the limited ones first.
        judged_by: The metric of trials and curves.
        trials: All of them.
        widths: Sizes of the channel groups by trial; None where a trial leaves a group as it was.
        conflicts: Share of the samples in conflict, by block and time; one per observed trial.
        quality: QC of layers by epoch, one per observed trial.
        curves: The last trainings of both networks.
        decisions: The method's sentences.
        plan: The edits as text.
        uncounted: Operators that nobody counts.
        recipe: What the result was trained with, where it differs from nothing.
        provenance: Versions, machine, command, seconds.
        missing: Section -> one sentence why it is not there.
    """

    title: str
    folder: Path
    finished: bool
    status: str
    asked: tuple[Fact, ...]
    limits: tuple[Limit, ...] = ()
    compared: tuple[Compared, ...] = ()
    deviation: str = ""
    warnings: tuple[ResultWarning, ...] = ()
    classes: tuple[ClassAccuracy, ...] = ()
    classes_of: str = ""
    networks: Networks | None = None
    metrics: tuple[str, ...] = ()
    judged_by: Metric = ACCURACY
    trials: tuple[Trial, ...] = ()
    widths: Heat | None = None
    conflicts: tuple[Heat, ...] = ()
    quality: tuple[Heat, ...] = ()
    curves: tuple[Curve, ...] = ()
    decisions: tuple[Decision, ...] = ()
    plan: str = ""
    uncounted: tuple[str, ...] = ()
    recipe: tuple[Fact, ...] = ()
    provenance: tuple[Fact, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = {name: value for name, value in asdict(self).items() if name != "judged_by"}
        said = {**plain, "folder": str(self.folder), **self.judged_by.settings()}
        return {"format": "convwright report", "version": 1, **said}

    def __str__(self) -> str:
        """Return the table of untouched network and result as plain text, for a terminal."""
        limits = [[f"{t.metric} <= {t.limit}", "", t.found, _MET[t.met]] for t in self.limits]
        lines = [[row.name, row.before, row.after, row.change] for row in self.compared]
        heads = [*(f"WARNING: {each}" for each in self.warnings), self.status]
        return "\n".join(heads) + "\n" + aligned([["", "baseline", "result", "change"], *lines, ["budget"], *limits])


_MET = {True: "met", False: "BROKEN", None: ""}


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return a table as text, the first column to the left and the others to the right."""
    full = [[*line, *[""] * (4 - len(line))] for line in table]
    widths = [max(len(line[i]) for line in full) for i in range(4)]
    rows = (
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in full
    )
    return "\n".join("  ".join(row).rstrip() for row in rows)
