"""What pixels are normalised by before a network sees them: the data's own numbers, those of ImageNet, or others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from convwright.errors import RecipeError
from convwright.training.tasks.base import BaseTask

_Data = TypeVar("_Data", bound=BaseTask)
Name = Literal["data", "imagenet", "timm"]
NAMES: tuple[str, ...] = get_args(Name)
_BYTES = 2  # a mean above it is none of values from 0 to 1


class Normalisation(BaseModel):
    """Mean and standard deviation per channel, in units of 0..1 (of the values themselves for float images)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _alike(self) -> Normalisation:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations; give one per channel")
        return self

    def __str__(self) -> str:
        return "; ".join(f"{name} {', '.join(f'{v:.4g}' for v in values)}" for name, values in self)


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def normalised(data: _Data, choice: str | Normalisation, model: nn.Module) -> _Data:
    """Return data whose images are normalised as a recipe says.

    Args:
        data: With its own mean and standard deviation, which ``data`` stands for; a task that makes its own batches
            stays as it is.
        choice: The recipe's field `normalisation`.
        model: Has the numbers that ``timm`` stands for.

    Raises:
        RecipeError: There are no such numbers, or not as many as the images have channels.
    """
    if choice == "data" or not hasattr(data, "normalised"):
        return data
    named = {"imagenet": lambda: IMAGENET, "timm": lambda: _of_timm(model)}
    numbers = choice if isinstance(choice, Normalisation) else named[choice]()
    if (count := len(numbers.mean)) != data.shape[0]:
        raise RecipeError(
            f"recipe field normalisation: {numbers} is for {count} channel{'s' * (count != 1)} and the images of "
            f"{data.name} have {data.shape[0]}; use data, or give one mean and std per channel"
        )
    if max(map(abs, numbers.mean)) > _BYTES and max(map(abs, data.mean), default=0) <= 1:
        raise RecipeError(
            f"recipe field normalisation: {numbers} looks like that of bytes from 0 to 255, and the images of "
            f"{data.name} have the mean {data.mean[0]:.3g}; give the numbers in units of 0..1, divided by 255"
        )
    changed: _Data = data.normalised(numbers.mean, numbers.std)
    return changed


def _of_timm(model: nn.Module) -> Normalisation:
    found = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(found, Mapping) or not {"mean", "std"} <= found.keys():
        raise RecipeError(
            f"recipe field normalisation=timm: {type(model).__name__} has no pretrained_cfg with mean and std, as the "
            "networks of timm have; use imagenet or data, or give the numbers"
        )
    return Normalisation(mean=found["mean"], std=found["std"])
