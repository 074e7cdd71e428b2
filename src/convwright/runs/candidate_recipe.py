"""The recipe of a run and of its trials: what is settled once, what a candidate may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convwright.errors import RecipeError
from convwright.training import Recipe
from convwright.training.techniques import technique_named

if TYPE_CHECKING:
    from convwright.methods import Method

# What a candidate says itself, and what is settled once so that all trials are trained and judged alike.
_NOT_IN_A_CANDIDATE = ("epochs", "seed", "precision", "memory_format", "val_fraction", "normalisation", "resize")
RATE = "lr"  # of the evidence: what the rate test of a trial found


def settled_recipe(recipe: Recipe, settled: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run with what it settled once for all its trainings, such as precision and layout."""
    names = ("precision", "memory_format", "normalisation", "resize", "lr")
    return recipe.updated(**{name: settled[name] for name in names if name in settled})


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


def leave_out_known_techniques(method: Method, recipe: Recipe) -> None:
    """Take from what a method will try the techniques that the run's recipe has."""
    method.without_techniques(lambda changes: not _changes(recipe, changes))


def _changes(recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    try:
        return changed_recipe(recipe, changes) != recipe
    except RecipeError:  # its trial will say so
        return True


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
