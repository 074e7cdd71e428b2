"""What the rows of ``rivals`` are made of: searches whose weights are kept, and trainings that spend what is left."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from convwright.architecture import Architecture, create
from convwright.cost import count_by_torch
from convwright.cost.budget import Limits
from convwright.cost.latency import compare_latency
from convwright.experiments.designs.design import SEARCH_FORMAT, DesignContext, NetworkSpec, opened
from convwright.experiments.designs.search_design import FOUND, Searched
from convwright.methods import Candidate, Method
from convwright.methods.phased.phased import PhasedDesign
from convwright.methods.receptive_field.organizer import organize
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.methods.script import Batch
from convwright.metrics.receptive_field.analysis import Score
from convwright.runs.directory.files import read_json
from convwright.training import ImageData, Recipe, load_data


@dataclass(frozen=True)
class Kept:
    """A search decides the edits, and the row's training goes on from the weights that its result inherits, if any.

    Attributes:
        search: The search.
    """

    kind: ClassVar[str] = "kept"

    search: Searched

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the found edits at the end, and its weights.

        Raises:
            RecipeError: The search ended without a result.
        """
        found = self.search.resolve(model, form, setting)
        weights = found.searches[-1] / FOUND
        return replace(found, weights=weights if weights.is_file() else None)


@dataclass(frozen=True)
class MovedUnits:
    """The stage-level organizer moves units between stages, as edits: any network has those, not only a builder.

    Attributes:
        score: Of a distribution of units.
    """

    kind: ClassVar[str] = "units"

    score: Score = "log"

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the organizer's edits at the end; as it was where nothing moves."""
        found = organize(opened(model, form, setting.shape), Rule("greedy", score=self.score))
        return form.joined(tuple(found.edits))


@dataclass(frozen=True)
class Rest:
    """The row's training gets what the searches before it left of a total, so that all rows of a table cost the same.

    Counted in images seen in training times MACs of one image forwards. Whole epochs: what is left over is less than
    one epoch of the row's network.

    Attributes:
        total: In epochs of the untouched network over all training images.
    """

    kind: ClassVar[str] = "rest"

    total: float

    def resolve(self, model: str, form: NetworkSpec, setting: DesignContext) -> NetworkSpec:
        """Return the form with the number of epochs, at least one.

        Raises:
            DataError: The data cannot be read.
        """
        images = len(load_data(setting.data, setting.data_dir, input_shape=setting.shape, val_fraction=0.0).train)
        spent = sum(read_json(folder / "result.json", SEARCH_FORMAT)["image_macs"] for folder in form.searches)
        whole, own = (opened(model, each, setting.shape).profile().macs for each in (setting.start, form))
        left = self.total * images * whole - spent
        return replace(form, epochs=max(1, int(left / (images * own) + 1e-9)))


@dataclass(frozen=True)
class Phases(Searched):
    """Method ``phased`` without techniques: its recipe is that of all rows.

    It trains the untouched network on beside every phase, to show it. That belongs to no result, so it is left out.
    """

    method: str = "phased"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def method_for(self, arch: Architecture, limits: Limits | None) -> Method:
        """Return the method that searches, without the trainings of the untouched network after the first."""
        assert limits is not None
        given: dict[str, Any] = {"epochs": 1, "tune_epochs": 1, "divisor": 1, "seed": self.seed, **self.options}
        return PhasesAlone(arch, limits, techniques=(), **given)


class PhasesAlone(PhasedDesign):
    """The phases without trainings of the untouched network beside them."""

    def _beside(self, seed: int) -> Batch:
        return ()

    @property
    def found(self) -> Candidate | None:
        """The best network, to be trained on from its weights, by the row; None as long as there is none."""
        best = self.best()
        return None if best is None else Candidate(best.candidate.plan, best.trial, 1, best.candidate.seed)


@dataclass(frozen=True)
class LatencyStudy:
    """The latency of a row's network, measured in turns with that of the untouched one.

    Each works on images of its own resolution.

    Attributes:
        model: The untouched network, as for `create`.
        options: Of its builder.
        shape: (c, h, w) of its images.
        seconds: How long both are measured.
    """

    kind: ClassVar[str] = "latency"

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shape: tuple[int, int, int] = (3, 32, 32)
    seconds: float = 2.0

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return ``latency`` and ``untouched`` in seconds and ``ratio``, the median over turns.

        And what costs refer to: ``images``, how many were trained on, and ``macs``, those of the untouched network.
        """
        untouched, _, _ = create(self.model, **self.options)
        own = copy.deepcopy(model).float().cpu()
        both = {
            "untouched": (untouched.eval(), torch.zeros(1, *self.shape)),
            "own": (own.eval(), torch.zeros(1, *data.shape)),
        }
        timed = compare_latency(both, seconds=self.seconds)
        return {
            "latency": timed.latencies["own"].median,
            "untouched": timed.latencies["untouched"].median,
            "ratio": timed.ratios["own"].median,
            "images": len(data.train),
            "macs": count_by_torch(untouched, both["untouched"][1]),
        }
