"""From a candidate to evidence: build the network, give it its parent's weights, train, judge."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convwright.architecture import Architecture, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.edits.edit import Options
from convwright.edits.plan import passages
from convwright.errors import EditError, RecipeError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs.files import load_weights, save_weights
from convwright.training import ImageData, Metrics, Recipe, evaluate, train
from convwright.training.images import Images
from convwright.training.settings import to_layout
from convwright.training.techniques import technique_named

if TYPE_CHECKING:
    from convwright.edits import Plan
    from convwright.runs.study import Study


# What a candidate says itself, and what is settled once so that all trials are trained and judged alike.
_NOT_IN_A_CANDIDATE = ("epochs", "seed", "precision", "memory_format", "val_fraction")


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
        try:
            recipe = changed_recipe(self.recipe, candidate.recipe)
            network = self.build(candidate, parents)
            judged = self._trained(network.model, number, candidate, recipe)
        except (RecipeError, EditError) as error:  # a recipe or a plan that does not work here: the search goes on
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

    def _trained(self, model: nn.Module, number: int, candidate: Candidate, recipe: Recipe) -> Metrics:
        assert self.data.val is not None
        if not candidate.epochs:
            return self.judge(model, self.data.val)
        result = train(
            model,
            self.data,
            recipe.updated(epochs=candidate.epochs, seed=candidate.seed),
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


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a candidate is trained with.

    Args:
        recipe: The run's.
        changes: The candidate's, as in `Candidate.recipe`; its techniques join those of the run.

    Raises:
        RecipeError: A field is unknown, out of its range, or not a candidate's to change; or a technique edits the
            network.
    """
    if not changes:
        return recipe
    for name in _NOT_IN_A_CANDIDATE:
        if name in changes:
            raise RecipeError(f"recipe field {name} is the same for all trials; a candidate cannot change it")
    given = changes.get("techniques", {})
    added = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given)
    techniques = {**recipe.model_dump()["techniques"], **added}
    changed = recipe.updated(**{**changes, "techniques": techniques})
    refuse_structural(changed)
    return changed


def refuse_structural(recipe: Recipe) -> None:
    """Refuse techniques that edit the network: in a search these are edits of a plan, counted and proved.

    Raises:
        RecipeError: There is one.
    """
    for name in recipe.techniques:
        kind = technique_named(name).kind
        if kind is not None and kind.changes_network:
            raise RecipeError(
                f"recipe field techniques.{name}: it edits the network, and what `optimize` edits stands in the plan; "
                "take it out of the recipe (method `phased` tries it as an edit, `train` takes it in its recipe)"
            )


def reshaped(arch: Architecture, plan: Plan) -> Architecture:
    """Return a copy of the network in the plan's shape; which weights it keeps does not matter."""
    if plan.edits:
        # Numbered, as a saved plan is replayed: what names a target again was meant to come later.
        done = list(passages(arch, plan.edits, Options(importance="first", verify=False), numbered=True))
        return done[-1].after
    return read(copy.deepcopy(arch.model), arch.example_input).evolved(source=arch.source)


def _since(start: float) -> float:
    return time.perf_counter() - start
