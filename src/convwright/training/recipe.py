"""How to train, as one frozen value: readable YAML in and out, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from convwright.errors import RecipeError, did_you_mean
from convwright.training.augment import Augment, PaddingMode
from convwright.training.techniques import Technique, made, technique_named

Precision = Literal["auto", "fp32", "bf16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]


class Recipe(BaseModel):
    """A training recipe.

    Attributes:
        optimizer: Name in torch.optim, else timm.optim, else pytorch_optimizer if installed.
        lr: The highest learning rate of the schedule.
        momentum: Momentum, or the first beta of Adam's family.
        nesterov: Nesterov momentum, where the optimizer has it.
        weight_decay: Decay per step, in the optimizer's own convention.
        decay_norm_and_bias: Whether normalisation weights and biases (one-dimensional) decay, too.
        optimizer_options: More keyword arguments of the optimizer.
        schedule: Learning rate over the steps: one cycle, cosine to zero, or constant.
        warmup: Share of all steps in which the learning rate rises.
        epochs: Passes over the training images.
        max_steps: At most so many steps in all; the schedule ends there.
        batch_size: Images per step.
        accumulate: Parts that a batch is computed in, one after the other, to save memory.
        crop_padding: Random crop after so many pixels of padding per side; 0: off.
        padding_mode: Padding by the mirrored image or by zeros.
        hflip: Mirror at random.
        cutout: Side of a random erased square in pixels; 0: off.
        label_smoothing: Share of the target that is spread over all classes.
        grad_clip: Largest norm of the gradient; None: off.
        techniques: Techniques by name with their options, e.g. ``{"mixup": {"alpha": 0.2}}``; ``True`` or nothing
            means the defaults, ``False`` means off.
        precision: fp32, bf16 (mixed), or what a short measurement finds faster.
        memory_format: Layout, or what a short measurement finds faster.
        seed: Order, augmentation and dropout follow it.
        val_fraction: Share of the training images held out, where `train` loads the data itself.

    Raises:
        RecipeError: A field is unknown or outside its range; one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: str = "sgd"
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    decay_norm_and_bias: bool = False
    optimizer_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = Field(0.25, ge=0, lt=1)
    epochs: int = Field(20, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    crop_padding: int = Field(4, ge=0)
    padding_mode: PaddingMode = "reflect"
    hflip: bool = True
    cutout: int = Field(0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    grad_clip: float | None = Field(None, gt=0)
    techniques: dict[str, SerializeAsAny[Technique]] = Field(default_factory=dict)
    precision: Precision = "auto"
    memory_format: MemoryFormat = "auto"
    seed: int = Field(0, ge=0, lt=2**63)
    val_fraction: float = Field(0.1, ge=0, lt=1)

    def __init__(self, **values: Any) -> None:
        """Check the fields; pydantic's report becomes one line."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(_one_line(error, type(self).model_fields)) from error

    @field_validator("techniques", mode="before")
    @classmethod
    def _made(cls, given: Any) -> dict[str, Technique]:
        """Make the techniques from what a file or a caller wrote: a mapping, or a list of names."""
        if isinstance(given, list | tuple):
            given = dict.fromkeys(given)
        if not isinstance(given, Mapping):
            raise RecipeError("recipe field techniques: write names with options, such as `mixup: {alpha: 0.2}`")
        chosen = {str(name): _technique(str(name), options) for name, options in given.items()}
        kept = {name: found for name, found in chosen.items() if found is not None}
        for name, found in kept.items():
            for other, reason in found.excludes.items():
                if other in kept:
                    raise RecipeError(f"recipe field techniques: {name} with {other}: {reason}")
        return kept

    @property
    def augment(self) -> Augment:
        """What may happen to a training image."""
        return Augment(self.crop_padding, self.padding_mode, self.hflip, self.cutout)

    def updated(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed and all checked."""
        return Recipe(**{**self.model_dump(), **changes})

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Return a recipe by name: `default`, `fast-cpu` or `small-net`.

        Raises:
            RecipeError: Unknown name; the nearest ones are listed.
        """
        if name not in PRESETS:
            raise RecipeError(
                f"unknown recipe {name!r}.{did_you_mean(name, PRESETS)} "
                f"Give one of {', '.join(PRESETS)}, or a .yaml file"
            )
        return PRESETS[name]

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file; fields that it does not name keep their defaults.

        Raises:
            RecipeError: The file is missing, is not YAML, or holds a bad field; names the file.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"{path}: not valid YAML ({reason})") from error
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: not a list of fields; write lines such as `epochs: 20`")
        try:
            return cls(**{str(key): value for key, value in values.items()})
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write all fields as YAML."""
        text = yaml.safe_dump(self.model_dump(), sort_keys=False)
        Path(path).write_text(text, encoding="utf-8")


def as_recipe(recipe: Recipe | str | Path | None) -> Recipe:
    """Return a recipe from a recipe, a preset's name, a .yaml file, or None (the default).

    Raises:
        RecipeError: Unknown preset or bad file.
    """
    if recipe is None:
        return PRESETS["default"]
    if isinstance(recipe, Recipe):
        return recipe
    if Path(recipe).suffix in (".yaml", ".yml"):
        return Recipe.load(recipe)
    return Recipe.preset(str(recipe))


def _technique(name: str, options: Any) -> Technique | None:
    """Return one technique; what is wrong with it becomes one line that begins with its path."""
    try:
        return made(name, options)
    except RecipeError as error:
        raise RecipeError(f"recipe field techniques: {error}") from error
    except ValidationError as error:
        kind = technique_named(name).kind
        assert kind is not None
        raise RecipeError(_one_line(error, kind.model_fields, ("techniques", name))) from error


def _one_line(error: ValidationError, known: Any, path: Sequence[str] = ()) -> str:
    parts = []
    for item in error.errors():
        field = ".".join([*path, *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown recipe field {field!r}.{did_you_mean(field, known)}")
        else:
            parts.append(f"recipe field {field}={item['input']!r}: {item['msg']}")
    return "; ".join(parts)


PRESETS: dict[str, Recipe] = {
    "default": Recipe(),
    # Few epochs and a high rate: the most accuracy in the first minutes on a CPU.
    "fast-cpu": Recipe(epochs=4, lr=0.2, label_smoothing=0.05, crop_padding=2),
    # Networks of a few thousand parameters underfit: no cutout, little decay, a plain target.
    "small-net": Recipe(
        epochs=30,
        optimizer="adamw",
        lr=0.01,
        weight_decay=1e-3,
        batch_size=64,
        crop_padding=2,
        hflip=False,
        label_smoothing=0.0,
    ),
}
