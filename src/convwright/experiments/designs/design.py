"""What methods decide about a row's network before it is trained, as data: a row names the question, not the answer.

A design reads the network, which takes seconds; an experiment that is only listed asks none.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from convwright import zoo
from convwright.architecture import Architecture, create, read
from convwright.cost.budget import Limits, parse_budget
from convwright.edits import Edit, Replace, Resolution, Width
from convwright.edits.edit import Options
from convwright.edits.operators import OPERATORS
from convwright.edits.plan import passages
from convwright.edits.plan_file import edits_of
from convwright.edits.reinitialize import draw_anew
from convwright.errors import BudgetError, RunError
from convwright.methods.random_widths import drawn
from convwright.methods.receptive_field.kernel_optimizer import optimize_kernels
from convwright.methods.receptive_field.layer_operators import Menu, find_places
from convwright.methods.receptive_field.organizer import organize
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.methods.shared.uniform_widths import uniform_widths
from convwright.methods.shared.width_surface import Surface
from convwright.metrics.receptive_field.analysis import FieldMeasure

if TYPE_CHECKING:
    from convwright.experiments.papers import Row

SEARCH_FORMAT = "convwright experiment search"
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkSpec:
    """How a network is made: by its builder, then by edits.

    Attributes:
        options: Arguments of the builder.
        edits: What is done to the result.
        searches: Folders of the searches that this rests upon; another one that led here would do as well.
        weights: The file that the network's training begins with, in the folder of a search; None: drawn weights.
        epochs: Of that training; None: as the recipe says.
        teacher: Weights of the network without edits, for a recipe that learns from it; None: there is none.
    """

    options: Mapping[str, Any]
    edits: tuple[Edit, ...] = ()
    searches: tuple[Path, ...] = ()
    weights: Path | None = None
    epochs: int | None = None
    teacher: Path | None = None

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Height and width that the last edit of them gives its input; None: they stay."""
        sizes = [edit.size for edit in self.edits if isinstance(edit, Resolution)]
        if not sizes:
            return None
        height, width = (sizes[-1],) * 2 if isinstance(sizes[-1], int) else sizes[-1]
        return int(height), int(width)

    def as_dict(self) -> dict[str, Any]:
        """Return how the network is made, as plain JSON values; equal for equal networks."""
        # What only some forms have is left out of the others, so that what was recorded before stays the same.
        begun = {"weights": f"{self.weights.parent.name}/{self.weights.name}"} if self.weights is not None else {}
        trained = {"epochs": self.epochs} if self.epochs is not None else {}
        made_by = {"options": plain(dict(self.options)), "edits": plain([edit.to_dict() for edit in self.edits])}
        return {**made_by, **begun, **trained}

    def joined(self, edits: tuple[Edit, ...], *searches: Path) -> NetworkSpec:
        """Return the form with more edits; of two widths of one group the later one counts."""
        again = {edit.target for edit in edits if isinstance(edit, Width)}
        kept = tuple(edit for edit in self.edits if not (isinstance(edit, Width) and edit.target in again))
        return replace(self, edits=(*kept, *edits), searches=(*self.searches, *searches))


@dataclass(frozen=True)
class DesignContext:
    """Where a design is asked, and what it may use.

    Attributes:
        shape: (c, h, w) that the network is read at; None: its usual one.
        start: The form before any decision: budgets in percent are of this.
        searches: The folder in which searches that train are recorded; None: nothing may be trained.
        data: What a search trains on, as for `load_data`; "" for none.
        data_dir: Where named data sets lie.
        threads: Threads of torch; None: as they are.
        source: Where the images of `data` are read from on this machine; "": from `data`.
        seed: Of the row's training, for designs that depend on it.
    """

    shape: Shape | None = None
    start: NetworkSpec = field(default_factory=lambda: NetworkSpec({}))
    searches: Path | None = None
    data: str = ""
    data_dir: Path | None = None
    threads: int | None = None
    source: str = ""
    seed: int = 0


class Design(Protocol):
    """A decision about a network, as data: a frozen dataclass."""

    kind: ClassVar[str]

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form that it decides on, from the form so far."""


@dataclass(frozen=True)
class Organized:
    """The stage-level organizer decides the units of each stage, which go into the builder's ``depths``.

    So its result has fresh weights, like a network that was designed that way.

    Attributes:
        rule: How units move.
        effective: Fields are counted by their effective width.
        budget: Of a rule that spends one, e.g. ``macs<=100%`` of the network before any decision; "" for none.
    """

    kind: ClassVar[str] = "organizer"

    rule: Rule = field(default_factory=Rule)
    effective: bool = False
    budget: str = ""

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with other ``depths``.

        Raises:
            RunError: There are edits already, or the builder has no ``depths`` that are the network's units.
        """
        if form.edits:
            raise RunError(f"{model}: the organizer's depths go to the builder: name it before what edits the network")
        arch = opened(model, form, setting.shape)
        limits = limits_of(self.budget, model, setting)
        found = organize(arch, self.rule, limits, FieldMeasure(effective=self.effective))
        present = depths_of(model, form.options)
        if present != found.before:
            raise RunError(
                f"{model}: its units per stage are {list(found.before)}, but its option 'depths' is {present}; "
                "the organizer's result cannot be built"
            )
        if found.after == found.before:  # then it is the same network, by name too
            return form
        return replace(form, options={**form.options, "depths": list(found.after)})


@dataclass(frozen=True)
class OptimizedKernels:
    """The kernel-level optimizer chooses operators.

    Attributes:
        menu: Which are considered, and where.
        tolerance: Share of its field that a stage keeps at least.
        budget: Operators get no cheaper than this needs, e.g. ``params<=35%`` of the network before any decision; "":
            as cheap as they can be.
    """

    kind: ClassVar[str] = "kernels"

    menu: Menu = field(default_factory=Menu)
    tolerance: float = 1.0
    budget: str = ""

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the optimizer's edits at the end."""
        limits = limits_of(self.budget, model, setting)
        found = optimize_kernels(opened(model, form, setting.shape), self.menu, self.tolerance, limits=limits)
        return replace(form, edits=(*form.edits, *found.edits))


@dataclass(frozen=True)
class RollingEverywhere:
    """One setting of (DW+)RPW wherever the authors' related code would place it.

    Attributes:
        groups: Of the rolling pointwise convolutions; 1: plain pointwise ones.
        overlap: Of their windows.
        bias: Of ``dw_rpw``.
    """

    kind: ClassVar[str] = "rolling"

    groups: int = 2
    overlap: float = 0.5
    bias: str = "like"

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with a replacement per place at the end."""
        places, _ = find_places(opened(model, form, setting.shape), Menu())
        common: dict[str, Any] = {"groups": self.groups, "overlap": self.overlap}
        edits = tuple(
            Replace(place.layer.name, "dw_rpw", **common, bias=self.bias)
            if max(place.module.kernel_size) > 1
            else Replace(place.layer.name, "rpw", **common)
            for place in places
        )
        return replace(form, edits=(*form.edits, *edits))


def limits_of(budget: str, model: str, setting: DesignContext, latency: int | None = None) -> Limits | None:
    """Return a budget in numbers, percentages being of the network before any decision; None for "".

    Args:
        budget: E.g. ``macs<=50%``.
        model: The network's name.
        setting: Of the row.
        latency: Nanoseconds, where the budget limits it.
    """
    if not budget:
        return None
    return parse_budget(budget).resolve(opened(model, setting.start, setting.shape).profile(), latency)


def form_of(row: Row, setting: DesignContext | None = None) -> NetworkSpec:
    """Return how a row's network is made; what its designs decide comes before its own edits.

    Args:
        row: The row.
        setting: Where it is asked; its start is the row's own network.
    """
    form = NetworkSpec(dict(row.options))
    setting = replace(setting or DesignContext(), start=form)
    for design in row.design:
        form = design.resolve(row.model, form, setting)
    return replace(form, edits=tuple(_fresh(edit) for edit in (*form.edits, *row.edits)))


def made(model: str, form: NetworkSpec, shape: Shape | None, seed: int, fresh: bool = False) -> nn.Module:
    """Create a network; its weights depend on the seed and on nothing else, those of inserted operators included.

    Args:
        model: As for `create`.
        form: How it is made.
        shape: (c, h, w) that it is read at, where there are edits; None: its usual one.
        seed: Of the weights.
        fresh: All weights are drawn after the edits, at their final shapes, as `draw_anew` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, usual, _ = create(model, **form.options)
        if form.edits:
            network = _replayed(read(network, _shape(model, shape, usual)), form.edits).model
            _drawn_anew(network, form.edits)
    if fresh:
        draw_anew(network, seed)
    return network


def opened(model: str, form: NetworkSpec, shape: Shape | None) -> Architecture:
    """Return a network of this form, read; weights are whatever comes, so ask for its structure only."""
    return _opened(model, json.dumps(form.as_dict(), sort_keys=True), shape)


@lru_cache(maxsize=4)
def _opened(model: str, text: str, shape: Shape | None) -> Architecture:
    values = json.loads(text)
    plain_form, edits = NetworkSpec(values["options"]), edits_of(values["edits"], model)
    if edits:
        return _replayed(opened(model, plain_form, shape), edits)
    return read(made(model, plain_form, shape, 0), _shape(model, shape, None)).evolved(source=model)


def _replayed(arch: Architecture, edits: Sequence[Edit]) -> Architecture:
    """Apply edits as a plan is replayed: a later one may repeat a block again. Weights do not matter: no warnings."""
    for passage in passages(arch, edits, Options(verify=False), numbered=True):
        arch = passage.after
    return arch


def _shape(model: str, shape: Shape | None, usual: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is not None:
        return (1, *shape)
    if usual is None and model.startswith("zoo:"):
        usual = zoo.entry(model.partition(":")[2]).input_shape
    if usual is None:
        raise RunError(
            f"{model}: the shape of its input is not known; a row that is only counted takes a named network"
        )
    return (1, *usual)


def depths_of(model: str, options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the builder's depths: the option, or its default; None if there is none."""
    given = options.get("depths")
    if given is None and model.startswith("zoo:"):
        known = inspect.signature(zoo.entry(model.partition(":")[2]).build).parameters
        given = known["depths"].default if "depths" in known else None
    return tuple(given) if given is not None else None


def _fresh(edit: Edit) -> Edit:
    """Return an edit that fits nothing to weights that were drawn a moment ago."""
    if isinstance(edit, Replace) and "init" in OPERATORS[edit.operator].options and "init" not in edit.options:
        return Replace(edit.target, edit.operator, edit.approximate, **edit.options, init="fresh")
    return edit


def _drawn_anew(model: nn.Module, edits: tuple[Edit, ...]) -> None:
    """Draw the weights of inserted operators: what an edit draws depends on the layer's name, not on the seed."""
    for edit in edits:
        if isinstance(edit, Replace) and edit.options.get("init") == "fresh":
            for module in model.get_submodule(edit.target).modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True)
class UniformRatio:
    """All widths share one ratio, the largest within the budget.

    Attributes:
        budget: E.g. ``macs<=50%`` of the network before any decision.
        widen: Whether a network below the budget is widened up to it; else it stays as it is.
    """

    kind: ClassVar[str] = "uniform"

    budget: str
    widen: bool = True

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with other widths."""
        limits = limits_of(self.budget, model, setting)
        if limits is None:
            raise BudgetError(f"{model}: a uniform design needs a budget; give one like macs<=50%")
        arch = opened(model, form, setting.shape)
        profile = arch.profile()
        if not self.widen and limits.met({"macs": profile.macs, "params": profile.params}):
            return form
        return form.joined(uniform_widths(arch, limits))


@dataclass(frozen=True)
class Drawn:
    """Widths drawn at random: each group's size times a factor, log-uniform, independent of all others.

    Attributes:
        seed: Of the draw.
        low: Smallest factor.
        high: Largest.
        budget: All widths are then scaled to it; "": they stay as drawn.
    """

    kind: ClassVar[str] = "drawn"

    seed: int
    low: float = 0.5
    high: float = 1.0
    budget: str = ""

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with other widths."""
        arch = opened(model, form, setting.shape)
        limits = limits_of(self.budget, model, setting)
        surface = Surface(arch, limits or Limits({"macs": arch.profile().macs}), checked=limits is not None)
        return form.joined(drawn(surface, random.Random(self.seed), self.low, self.high, scaled=limits is not None))
