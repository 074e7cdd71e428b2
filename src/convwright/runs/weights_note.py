"""What a network needs besides its weights to judge an image: kept with the weights, and followed by who loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from torch import nn

from convwright.architecture.pretrained import preprocessing
from convwright.errors import RunError
from convwright.runs.directory.files import weights_note
from convwright.training import ImageData, Recipe
from convwright.training.data.folders import Interpolation, Resize
from convwright.training.data.normalisation import Normalisation
from convwright.training.tasks.base import BaseTask

KEYS = ("normalisation", "class_names", "resize")


def usage(data: BaseTask) -> dict[str, Any]:
    """Return what is done to images and what the outputs mean, as plain JSON values."""
    if not isinstance(data, ImageData):
        known = {"normalisation": {"mean": list(data.mean), "std": list(data.std)}} if data.mean else {}
        return {**known, "class_names": list(data.class_names)}
    numbers = {"mean": list(data.mean), "std": list(data.std)}
    resize = {} if data.resize == Resize() else {"resize": data.resize.model_dump()}
    return {"normalisation": numbers, "class_names": list(data.class_names), **resize}


def recorded(note: Mapping[str, Any], source: str | Path) -> tuple[Normalisation | None, Resize]:
    """Return the normalisation in what `usage` gave, None if there is none, and how photographs were resized.

    Raises:
        RunError: It is damaged; names the source.
    """
    try:
        numbers = Normalisation(**note["normalisation"]) if "normalisation" in note else None
        return numbers, Resize(**note.get("resize", {}))
    except (TypeError, ValidationError) as error:
        raise RunError(f"{source}: the recorded normalisation is damaged; write or export it anew") from error


@dataclass(frozen=True)
class AsTrained:
    """How images were fed to weights when they were trained.

    Attributes:
        source: The weights.
        normalisation: Of the images.
        resize: Of photographs.
        certain: Whether the weights' own file says it: then it counts whatever a recipe says. Else it is how the
            pretrained weights of a network of torchvision or timm were judged, and counts where a recipe says nothing.
    """

    source: str
    normalisation: Normalisation
    resize: Resize
    certain: bool

    @classmethod
    def of(cls, model: nn.Module | str, weights: str | Path | None, pretrained: bool) -> AsTrained | None:
        """Return what is known of the weights that a network is given; None: nothing.

        Raises:
            RunError: What the file says of it is damaged.
        """
        if weights is not None:
            numbers, resize = recorded(weights_note(weights), weights)
            if numbers is not None:
                return cls(str(weights), numbers, resize, True)
        known = preprocessing(model) if isinstance(model, str) and (pretrained or weights is not None) else None
        if known is None:
            return None
        interpolation: Any = known.interpolation if known.interpolation in get_args(Interpolation) else None
        resize = Resize(crop_pct=min(known.crop_pct, 1), interpolation=interpolation)
        return cls(f"the pretrained {model}", Normalisation(mean=known.mean, std=known.std), resize, False)

    def resizing(self, recipe: Recipe) -> Resize:
        """Return how photographs are resized with a recipe."""
        first, then = (self.resize, recipe.resize) if self.certain else (recipe.resize, self.resize)
        return then.model_copy(update=first.model_dump(exclude_none=True))

    def normalising(self, recipe: Recipe, channels: int) -> str | Normalisation:
        """Return how images of so many channels are normalised with a recipe."""
        usual = recipe.normalisation == "data" and len(self.normalisation.mean) == channels
        return self.normalisation if self.certain or usual else recipe.normalisation


def remark(found: AsTrained | None, recipe: Recipe, data: ImageData, weights: str | Path | None) -> str:
    """Say how images are fed to given weights, and who says so."""
    shown = "" if data.resize == Resize() else f"; {data.resize}"
    if found is not None and recipe.normalisation == found.normalisation:
        return f"images are normalised as {found.source} was trained: {found.normalisation}{shown}"
    used = f"used is normalisation={recipe.normalisation} of the recipe{shown}"
    if found is not None or weights is None:
        return used
    ways = " (timm or imagenet for weights of theirs; your own numbers as normalisation: {mean: [...], std: [...]})"
    hint = ways if recipe.normalisation == "data" else ""
    return f"{weights}: does not say how its images were normalised; {used}{hint}"
