"""From a candidate to evidence: build the network, give it its parent's weights, train, judge."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from convwright.architecture import Architecture, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.errors import RecipeError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs.files import load_weights, save_weights
from convwright.training import ImageData, Metrics, Recipe, evaluate, train
from convwright.training.images import Images
from convwright.training.settings import to_layout

if TYPE_CHECKING:
    from convwright.edits import Plan
    from convwright.runs.study import Study


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates the candidates of one run.

    Attributes:
        arch: The network as it was read, with the weights that the run starts from.
        data: Training and validation images.
        recipe: Precision and layout are settled in it, so that all trials are trained alike.
        study: Where weights and checkpoints lie.
        progress: Whether training shows how far it is.
        workers: Processes that read a streamed data set.
    """

    arch: Architecture
    data: ImageData
    recipe: Recipe
    study: Study
    progress: bool = True
    workers: int | None = None

    def __call__(self, number: int, candidate: Candidate, parents: Mapping[int, Candidate]) -> Evidence:
        """Return evidence on trial `number`; its weights are in the run directory afterwards.

        Args:
            number: The trial.
            candidate: What to try.
            parents: The candidates of earlier trials by number.

        Raises:
            RunError: The candidate asks for something that cannot be observed here.
        """
        if candidate.stop is not None or candidate.probes:
            raise RunError(f"trial {number} asks for probes or an early stop, which are not observed yet")
        start = time.perf_counter()
        network = self.build(candidate, parents)
        try:
            judged = self._trained(network.model, number, candidate)
        except RecipeError as error:
            return Evidence(
                candidate, number, float("nan"), 0.0, {}, status="failed", seconds=_since(start), message=str(error)
            )
        save_weights(network.model, self.study.weights(number))
        costs = costs_of(profile(network))
        return Evidence(candidate, number, judged.accuracy, judged.stderr, costs, seconds=_since(start))

    # ------------------------------------------------------------------ building

    def build(self, candidate: Candidate, parents: Mapping[int, Candidate]) -> Architecture:
        """Build a candidate with inherited weights; the network of the run stays as it is.

        Raises:
            RunError: Its plan does not begin with its parent's.
        """
        if candidate.parent is None:
            return reshaped(self.arch, candidate.plan)
        inherited = parents[candidate.parent].plan
        given = len(inherited.edits)
        if candidate.plan.edits[:given] != inherited.edits:
            raise RunError(f"the plan of a child of trial {candidate.parent} does not begin with its parent's plan")
        # Which channels stay is decided below, on the trained weights; here only the shapes matter.
        parent = reshaped(self.arch, inherited)
        load_weights(parent.model, self.study.weights(candidate.parent))
        return parent.apply(*candidate.plan.edits[given:])

    # ------------------------------------------------------------------ training

    def _trained(self, model: nn.Module, number: int, candidate: Candidate) -> Metrics:
        assert self.data.val is not None
        if not candidate.epochs:
            return self.judge(model, self.data.val)
        result = train(
            model,
            self.data,
            self.recipe.updated(epochs=candidate.epochs, seed=candidate.seed),
            out=self.study.trial_folder(number),
            resume=True,
            progress=self.progress,
            test=False,
            workers=self.workers,
        )
        assert result.val is not None
        return result.val

    def judge(self, model: nn.Module, images: Images) -> Metrics:
        """Judge a network in the precision and layout of the training."""
        channels_last = self.recipe.memory_format == "channels_last"
        to_layout(model, torch.channels_last if channels_last else torch.contiguous_format)
        metrics = evaluate(
            model, images, precision=self.recipe.precision, channels_last=channels_last, workers=self.workers
        )
        to_layout(model, torch.contiguous_format)
        return metrics


def reshaped(arch: Architecture, plan: Plan) -> Architecture:
    """Return a copy of the network in the plan's shape; which weights it keeps does not matter."""
    if plan.edits:
        return arch.apply(*plan.edits, importance="first", verify=False)
    return read(copy.deepcopy(arch.model), arch.example_input).evolved(source=arch.source)


def _since(start: float) -> float:
    return time.perf_counter() - start
