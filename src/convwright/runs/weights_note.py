"""What a network needs besides its weights to judge an image: kept with the weights, and followed by who loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from convwright.errors import RunError
from convwright.runs.directory.files import weights_note
from convwright.training import ImageData, Recipe
from convwright.training.data.normalisation import Normalisation
from convwright.training.still import tell

KEYS = ("normalisation", "class_names")


def usage(data: ImageData) -> dict[str, Any]:
    """Return what images are normalised by and what the outputs mean, as plain JSON values."""
    numbers = {"mean": list(data.mean), "std": list(data.std)}
    return {"normalisation": numbers, "class_names": list(data.class_names)}


def recorded(note: Mapping[str, Any], source: str | Path) -> Normalisation | None:
    """Return the normalisation in what `usage` gave; None if there is none.

    Raises:
        RunError: It is damaged; names the source.
    """
    try:
        return Normalisation(**note["normalisation"]) if "normalisation" in note else None
    except (TypeError, ValidationError) as error:
        raise RunError(f"{source}: the recorded normalisation is damaged; write or export it anew") from error


def as_trained(recipe: Recipe, weights: str | Path, say: Callable[[str], object] | None = None) -> Recipe:
    """Return the recipe with the normalisation that weights were trained with, where their file says it.

    Args:
        recipe: Its own field counts where the file says nothing.
        weights: A file that can be loaded.
        say: Called with a line for a person; None: it goes to standard error.

    Raises:
        RunError: What the file says of it is damaged.
    """
    numbers = recorded(weights_note(weights), weights)
    say = say or tell
    if numbers is None:
        choice = recipe.normalisation
        say(
            f"{weights}: does not say how its images were normalised; used is normalisation={choice} of the recipe"
            + (" (timm or imagenet for weights of theirs)" if choice == "data" else "")
        )
        return recipe
    say(f"images are normalised as {weights} was trained: {numbers}")
    return recipe.updated(normalisation=numbers)
