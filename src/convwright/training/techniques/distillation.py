"""Distillation: a trained network of the same kind says what each training image looks like."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from typing_extensions import override

from convwright.errors import RecipeError
from convwright.training.techniques.mixing import shares
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique

if TYPE_CHECKING:
    from convwright.training.recipe.recipe import Recipe


def distilled(targets: Tensor, scores: Tensor, weight: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Return targets of which a part is what a teacher says.

    Args:
        targets: (n,) class numbers, or (n, classes) shares.
        scores: (n, classes) of the teacher, for the same images.
        weight: The teacher's part.
        temperature: What its scores are divided by.

    Returns:
        (n, classes) float32, rows summing to 1.

    Examples:
        >>> distilled(torch.tensor([1]), torch.zeros(1, 2), 0.5).tolist()
        [[0.25, 0.75]]
    """
    said = (scores.float() / temperature).softmax(dim=1)
    return torch.lerp(shares(targets, scores.shape[1]), said, weight)


@technique(
    "distillation",
    Card(
        does="Replaces a part of each target by the probabilities that a trained network of the same kind gives for "
        "the very images, augmentation included.",
        cost="A forward pass of the teacher per batch, about a third of a step more, and its weights in memory.",
        helps="Networks that lose something for another aim, such as branches at 0.",
        hurts="There has to be a teacher. One that is no better teaches little.",
        source="Hinton, Vinyals and Dean 2015, by mixing targets; without their factor of the squared temperature.",
    ),
)
class Distillation(Technique):
    """Options of distillation.

    Attributes:
        teacher: A .safetensors file with weights of this network; ``{seed}`` in it is the recipe's seed.
        weight: The teacher's part of the targets; 0: none.
        temperature: What its scores are divided by.
    """

    teacher: str = "teacher.safetensors"
    weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)

    @override
    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse a file that is not there or does not fit, before any training."""
        if self.weight == 0:
            return ("techniques.distillation has no effect: its weight is 0",)
        self.taught(setting.arch.model, setting.recipe)
        return ()

    @override
    def effect(self, training: Training) -> Effect | None:
        """Return the effect on targets."""
        if self.weight == 0:
            return None
        recipe = training.setting.recipe
        teacher = self.taught(training.model, recipe).to(training.device).eval().requires_grad_(False)
        return _DistillationEffect(self, teacher, training.device, recipe.precision)

    def taught(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Return a copy of a network with the teacher's weights.

        Raises:
            RecipeError: There is no such file, or its weights do not fit.
        """
        path, teacher = Path(self.teacher.replace("{seed}", str(recipe.seed))), copy.deepcopy(model)
        if not path.is_file():
            raise RecipeError(f"techniques.distillation.teacher={path}: no such file; train the teacher first")
        try:
            load_model(teacher, str(path))
        except (SafetensorError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise RecipeError(
                f"techniques.distillation.teacher={path}: not the weights of this network ({reason})"
            ) from error
        return teacher


class _DistillationEffect(Effect):
    def __init__(self, asked: Distillation, teacher: nn.Module, device: torch.device, precision: str) -> None:
        self.asked, self.teacher, self.device, self.precision = asked, teacher, device, precision

    @override
    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        # Here, not above: settings need the recipe, which needs the techniques.
        from convwright.training.settings import autocast, single_tensor

        with torch.no_grad(), autocast(self.device, self.precision):
            scores = single_tensor(self.teacher(images))
        return images, distilled(targets, scores, self.asked.weight, self.asked.temperature)
