"""What of a recipe is refused before the first batch, beyond what each field shows by itself.

`check_alone` needs the recipe only; `check_setting` looks at data and network, too, and changes neither.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.training.recipe.optimizers import build_optimizer, no_effect
from convwright.training.recipe.recipe import Recipe
from convwright.training.recipe.schedules import Position
from convwright.training.techniques import TechniqueContext

_LOOKS = 1000  # positions at which a schedule is tried


def check_alone(recipe: Recipe) -> tuple[str, ...]:
    """Check what needs neither data nor network.

    Returns:
        Warnings, one line each: fields that have no effect, or work against each other.

    Raises:
        RecipeError: An unknown optimizer or option of it, or values that contradict each other.
    """
    warnings = list(no_effect(recipe))
    build_optimizer(nn.ParameterList([torch.zeros(2, 2)]), recipe)  # draws no random number, as a layer would
    if recipe.cutout and "cutmix" in recipe.techniques:
        warnings.append("cutout with cutmix: pasted patches carry erased squares along; one of the two is enough")
    return tuple(warnings)


def check_setting(setting: TechniqueContext) -> tuple[str, ...]:
    """Check a recipe against its data and network, without running it; the techniques check themselves.

    Returns:
        Warnings, one line each.

    Raises:
        RecipeError: Names the field and the remedy.
    """
    recipe, data = setting.recipe, setting.data
    warnings = check_alone(recipe)
    if not data.own_batches and recipe.batch_size > (count := len(data.train)):
        warnings += (f"batch_size={recipe.batch_size}: there are {count} training images; each step takes all of them",)
    _check_schedule(setting)
    if not data.own_batches:
        recipe.augment.check(*data.shape[1:])
    build_optimizer(setting.arch.model, recipe)
    return warnings


def _check_schedule(setting: TechniqueContext) -> None:
    recipe, total = setting.recipe, setting.steps
    for step in sorted({round(i * (total - 1) / (_LOOKS - 1)) for i in range(_LOOKS)}):
        factor, momentum = recipe.rates(Position(step, total, setting.steps_per_epoch))
        if not (math.isfinite(factor) and 0 <= factor <= 1 + 1e-9):
            raise RecipeError(
                f"recipe field schedule={recipe.schedule!r}: gives {factor:g} times the rate at step {step + 1} of "
                f"{total}; a schedule gives shares from 0 to 1"
            )
        if momentum is not None and not 0 <= momentum < 1:
            raise RecipeError(
                f"recipe field schedule={recipe.schedule!r}: gives momentum {momentum:g} at step {step + 1} of "
                f"{total}; it has to be in 0 <= value < 1"
            )
