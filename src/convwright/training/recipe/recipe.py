"""How to train, as one frozen value: readable YAML in and out, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from convwright.errors import RecipeError, brief, did_you_mean
from convwright.training import presets
from convwright.training.data.augment import Augment, PaddingMode
from convwright.training.data.folders import Resize
from convwright.training.data.normalisation import NAMES, Name, Normalisation
from convwright.training.recipe.recipe_file import is_file_name, listed, merged, read_fields
from convwright.training.recipe.schedules import Position, Rates, schedule_named
from convwright.training.techniques import Technique, made, technique_named

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
_ELSEWHERE = {"learning_rate": "lr", "wd": "weight_decay", "scheduler": "schedule", "amp": "precision"}  # other tools
Rate = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False), Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda given: "auto" if given == "auto" else "number"),  # else both kinds would report an error
]
Option = bool | int | float | str | tuple[float, ...] | None


class Recipe(BaseModel):
    """A training recipe.

    Attributes:
        optimizer: Name in torch.optim, else timm.optim, else pytorch_optimizer if installed.
        lr: The highest learning rate of the schedule, or ``auto``: found before the first step by a short rate test
            from the given weights, see `rate_test`.
        lr_first_factor: Share of the rate that the first layer learns with; it rises from layer to layer, in equal
            ratios, to 1 at the last one before the head. Trained first layers need little change.
        lr_head_factor: How many times the rate the last layer learns with: a new one has more to learn.
        momentum: Momentum, or the first beta of Adam's family.
        nesterov: Nesterov momentum, where the optimizer has it.
        weight_decay: Decay per step, in the optimizer's own convention.
        decay_norm_and_bias: Whether normalisation weights and biases (one-dimensional) decay, too.
        optimizer_options: More keyword arguments of the optimizer.
        schedule: Learning rate over the steps: onecycle, cosine, constant, step, triangular, or any other name in
            `SCHEDULES`.
        schedule_options: Options of the schedule; filled up with its defaults.
        warmup: Share of all steps in which the learning rate rises, where the schedule has one.
        epochs: Passes over the training images.
        max_steps: At most so many steps in all; the schedule ends there.
        batch_size: Images per step.
        accumulate: Parts that a batch is computed in, one after the other, to save memory.
        crop_padding: Random crop after so many pixels of padding per side; 0: off.
        padding_mode: Padding by the mirrored image or by zeros.
        hflip: Mirror at random.
        random_resized_crop: Least and largest share of the image's area that a random crop shows, resized to the
            whole image; then there is no crop after padding. None: off.
        crop_ratio: Least and largest width / height of that crop.
        cutout: Side of a random erased square in pixels; 0: off.
        label_smoothing: Share of the target that is spread over all classes.
        grad_clip: Largest norm of the gradient; None: off.
        techniques: Techniques by name with their options, e.g. ``{"mixup": {"alpha": 0.2}}``; ``True`` or nothing
            means the defaults, ``False`` means off.
        precision: fp32, bf16 (mixed), fp16 (mixed, with a scaled loss; on CUDA only), or ``auto``: of the first two
            what a short measurement finds faster.
        memory_format: Layout, or what a short measurement finds faster.
        seed: Order, augmentation and dropout follow it.
        val_fraction: Share of the training images held out, where `train` loads the data itself.
        normalisation: What is subtracted from pixels and what they are divided by: the mean and standard deviation of
            the ``data``, those of ``imagenet``, those that a network of ``timm`` was trained with, or numbers per
            channel in units of 0..1, ``{mean: [0.5], std: [0.25]}``. Weights that say theirs are followed; where this
            is ``data``, so are the numbers of the network's own pretrained weights.
        resize: How photographs of a folder become images of one size, ``{crop_pct: 0.875, interpolation: bicubic}``;
            what is left out is as for the network's own pretrained weights, else the whole image, bicubic.

    Raises:
        RecipeError: A field is unknown or outside its range; one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: str = "sgd"
    lr: Rate = 0.1
    lr_first_factor: float = Field(1.0, gt=0, le=1)
    lr_head_factor: float = Field(1.0, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    decay_norm_and_bias: bool = False
    optimizer_options: dict[str, Option] = Field(default_factory=dict)
    schedule: str = "onecycle"
    schedule_options: dict[str, Option] = Field(default_factory=dict, validate_default=True)
    warmup: float = Field(0.25, ge=0, lt=1)
    epochs: int = Field(20, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    crop_padding: int = Field(4, ge=0)
    padding_mode: PaddingMode = "reflect"
    hflip: bool = True
    random_resized_crop: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    cutout: int = Field(0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    grad_clip: float | None = Field(None, gt=0)
    techniques: dict[str, SerializeAsAny[Technique]] = Field(default_factory=dict)
    precision: Precision = "auto"
    memory_format: MemoryFormat = "auto"
    seed: int = Field(0, ge=0, lt=2**63)
    val_fraction: float = Field(0.1, ge=0, lt=1)
    normalisation: Name | Normalisation = "data"
    resize: Resize = Resize()

    def __init__(self, **values: Any) -> None:
        """Check the fields; pydantic's report becomes one line."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(_one_line(error, type(self).model_fields)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_switches(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` where a number is meant: it would count as 1."""
        _check_numbers({str(info.field_name): given}, cls.model_fields)
        return given

    @field_validator("schedule")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return schedule_named(name).name
        except RecipeError as error:
            raise RecipeError(f"recipe field schedule: {error}") from error

    @field_validator("schedule_options")
    @classmethod
    def _filled(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Check the options against the schedule, and fill in its defaults."""
        name = info.data.get("schedule")
        if name is None:  # its own error comes first
            return given
        schedule = schedule_named(name)
        if "warmup" in given:
            raise RecipeError("recipe field schedule_options.warmup: write it as the field warmup")
        _check_numbers(given, schedule.options.model_fields, ("schedule_options",))
        try:
            return schedule.options.model_validate(given).model_dump()
        except ValidationError as error:
            raise RecipeError(_one_line(error, schedule.options.model_fields, ("schedule_options",))) from error

    @field_validator("accumulate")
    @classmethod
    def _divides(cls, parts: int, info: ValidationInfo) -> int:
        size = info.data.get("batch_size")
        if size is not None and size % parts:
            raise ValueError(f"a batch of {size} cannot be computed in {parts} equal parts; use a divisor of {size}")
        return parts

    @field_validator("random_resized_crop", "crop_ratio")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
        largest = 1.0 if info.field_name == "random_resized_crop" else math.inf
        if ends is not None and not (0 < ends[0] <= ends[1] <= largest and ends[1] < math.inf):
            top = " <= 1" if largest == 1.0 else ""
            raise ValueError(f"give [least, largest] with 0 < least <= largest{top}")
        return ends

    @field_validator("normalisation", mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            try:
                return Normalisation(**given)
            except ValidationError as error:
                raise RecipeError(_one_line(error, Normalisation.model_fields, ("normalisation",))) from error
        if not isinstance(given, Normalisation) and given not in NAMES:
            raise ValueError(f"give {', '.join(NAMES)}, or numbers such as {{mean: [0.5], std: [0.25]}}")
        return given

    @field_validator("techniques", mode="before")
    @classmethod
    def _made(cls, given: Any) -> dict[str, Technique]:
        """Make the techniques from what a file or a caller wrote: a mapping, or a list of names."""
        given = listed(given)
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
    def rate(self) -> float:
        """The highest learning rate.

        Raises:
            RecipeError: It is ``auto``, and no rate test has been made.
        """
        if self.lr == "auto":
            raise RecipeError("recipe field lr=auto: `train` and `optimize` find the rate; here, give a number")
        return self.lr

    @property
    def fine_tunes(self) -> bool:
        """Whether it is for trained weights: their first layers are to learn slowly."""
        return self.lr_first_factor < 1

    @property
    def augment(self) -> Augment:
        """What may happen to a training image."""
        padding = 0 if self.random_resized_crop else self.crop_padding
        crop = self.random_resized_crop and (*self.random_resized_crop, *self.crop_ratio)
        return Augment(padding, self.padding_mode, self.hflip, self.cutout, crop)

    def rates(self, at: Position) -> Rates:
        """Return the share of `lr` and the momentum at a position; momentum None: as the recipe says.

        Raises:
            RecipeError: The schedule is impossible over so many steps.
        """
        return schedule_named(self.schedule).rates(at, self.warmup, self.schedule_options)

    def updated(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed and all checked.

        Another schedule or optimizer begins with its own options. `techniques` replaces them all.
        """
        now = self.model_dump()
        return Recipe(**{**merged(now, changes), "techniques": changes.get("techniques", now["techniques"])})

    @staticmethod
    def completed(record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recorded recipe with the defaults of the fields that have been added since."""
        return {**Recipe().model_dump(mode="json"), **record}

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Return a recipe by name, such as `default`, `fast-cpu` or `small-net`; `presets.names()` gives them all.

        Raises:
            RecipeError: Unknown name; the nearest ones are listed.
        """
        return cls(**presets.fields(name))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file; fields that it does not name keep their defaults.

        With the key ``preset`` the other fields change that preset; techniques are changed one by one, ``false``
        takes one off.

        Raises:
            RecipeError: The file is missing, is not YAML, names a key twice, or holds a bad field; names the file.
        """
        values = read_fields(Path(path))
        try:
            return cls._on_preset(values) if "preset" in values else cls(**values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    @classmethod
    def _on_preset(cls, values: Mapping[str, Any]) -> Recipe:
        name, changes = values["preset"], {key: value for key, value in values.items() if key != "preset"}
        if not isinstance(name, str):
            raise RecipeError(f"recipe field preset={name!r}: give one of {', '.join(presets.names())}")
        return cls(**merged(cls.preset(name).model_dump(), changes))

    def to_yaml(self) -> str:
        """Return all fields as YAML."""
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Write all fields as YAML.

        Raises:
            RecipeError: The file cannot be written.
        """
        try:
            Path(path).write_text(self.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: cannot be written ({error.strerror}); check the path") from error


class _Dumper(yaml.SafeDumper):
    """Writes pairs of numbers in one line."""


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def as_recipe(recipe: Recipe | str | Path | None) -> Recipe:
    """Return a recipe from a recipe, a preset's name, a .yaml file, or None (the default).

    Raises:
        RecipeError: Unknown preset or bad file.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        return Recipe.preset("default")
    if not isinstance(recipe, str | Path):
        raise RecipeError(f"{type(recipe).__name__} is not a recipe; give a Recipe, a preset's name or a .yaml file")
    return Recipe.load(recipe) if is_file_name(recipe) else Recipe.preset(str(recipe))


def _technique(name: str, options: Any) -> Technique | None:
    """Return one technique; what is wrong with it becomes one line that begins with its path."""
    try:
        kind = technique_named(name).kind
        if kind is not None and isinstance(options, Mapping):
            _check_numbers(options, kind.model_fields, ("techniques", name))
        return made(name, options)
    except RecipeError as error:
        text = str(error)
        raise RecipeError(text if text.startswith("recipe field") else f"recipe field techniques: {text}") from error
    except ValidationError as error:
        assert kind is not None
        raise RecipeError(_one_line(error, kind.model_fields, ("techniques", name))) from error


def _one_line(error: ValidationError, known: Iterable[str], path: Sequence[str] = ()) -> str:
    parts = []
    for item in error.errors():
        field = ".".join([*path, *(str(part) for part in item["loc"] if part != "number")])
        if item["type"] == "extra_forbidden":
            last = field.rpartition(".")[2]
            hint = f" Did you mean {_ELSEWHERE[field]}?" if field in _ELSEWHERE else did_you_mean(last, known)
            parts.append(f"unknown recipe field {field!r}.{hint or _all_of(path, known)}")
        else:
            parts.append(f"recipe field {field}={brief(item['input'])}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(parts))


def _check_numbers(given: Mapping[str, Any], fields: Mapping[str, FieldInfo], path: Sequence[str] = ()) -> None:
    """Refuse ``true`` (also written yes and on) where a number is meant: it would count as 1."""
    for name, value in given.items():
        kind = fields[name].annotation if name in fields else None
        kinds = {getattr(each, "__origin__", each) for each in (kind, *get_args(kind))}
        if isinstance(value, bool) and {int, float} & kinds and bool not in kinds:
            raise RecipeError(f"recipe field {'.'.join([*path, name])}={value}: give a number")


def _all_of(path: Sequence[str], known: Iterable[str]) -> str:
    """Name all options of a technique or a schedule; a recipe's fields are too many for a line."""
    if not path:
        return " `convwright recipe show default` lists them all"
    names = ", ".join(known)
    return f" {'.'.join(path)} has {names}" if names else f" {'.'.join(path)} has no options"
