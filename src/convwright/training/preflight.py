"""What is settled before the first step: the device, the fit of data and network, the settings."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from lightning_fabric import Fabric
from torch import nn

from convwright.architecture import Architecture
from convwright.architecture.capture.pytrees import Inputs
from convwright.devices import device_of
from convwright.edits import Plan
from convwright.errors import DataError, RecipeError, first_line
from convwright.training.checkpoint import FILE, readable
from convwright.training.data.data import ImageData
from convwright.training.data.loader import batch_sizes
from convwright.training.evaluate import eval_mode
from convwright.training.recipe.check_recipe import check_setting
from convwright.training.recipe.rate_test import rate_test
from convwright.training.recipe.recipe import Recipe
from convwright.training.settings import Kept, Measurement, Settings, choose_settings, single_tensor
from convwright.training.tasks.base import BaseTask, Batch
from convwright.training.tasks.loader import loader_of
from convwright.training.techniques import Teacher, TechniqueContext

SCALES = ("cuda",)  # devices on which float16 is trained


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network that is ready for training.

    Attributes:
        model: The network given, or an edited copy.
        setting: What its techniques were shown.
        plan: The edits made; None for none.
        warnings: Settings that have no effect, one line each.
    """

    model: nn.Module
    setting: TechniqueContext
    plan: Plan | None
    warnings: tuple[str, ...]


def setting_for(model: nn.Module, data: BaseTask, recipe: Recipe, teacher: Teacher | None = None) -> TechniqueContext:
    """Return what the recipe's techniques may look at; the network is captured when one of them asks."""
    images, size = isinstance(data, ImageData), recipe.batch_size
    per_epoch = len(batch_sizes(len(data.train), size) if images else data.train.sizes(size))
    whole = recipe.epochs * per_epoch
    inputs = read_with(data, model)
    given = None if inputs.one else inputs
    arch = Architecture(model, inputs.tensors[0], type(model).__name__, given=given)
    return TechniqueContext(recipe, data, arch, per_epoch, min(whole, recipe.max_steps or whole), teacher)


def prepare(model: nn.Module, data: BaseTask, recipe: Recipe, teacher: Teacher | None = None) -> Prepared:
    """Let the recipe's techniques check everything, and edit the network.

    Raises:
        RecipeError: A technique cannot work with this network, data or recipe, or the network has too many outputs.
        ReadError: A technique needs the network read, and it cannot be.
        DataError: The network, as it came or as it was edited, does not take the images.
    """
    # First of all: data that do not fit are said to be so, before something else stumbles over them.
    outputs = check_forward(model, data)
    first = setting = setting_for(model, data, recipe, teacher)
    notes = list(check_setting(setting))
    if isinstance(data, ImageData) and outputs > data.num_classes:
        raise RecipeError(
            f"{data.name}: {data.num_classes} classes and the network has {outputs} outputs, so that some are "
            f"never right; build it with {data.num_classes} outputs, or load the data with num_classes={outputs}"
        )
    for technique in recipe.techniques.values():
        if technique.classifies and not isinstance(data, ImageData):
            raise RecipeError(
                f"recipe field techniques.{technique.name}: it needs images with one class each; leave it out"
            )
        notes += technique.check(setting)
        edits = technique.edits(setting.arch) if technique.changes_network else ()
        if edits:
            setting = replace(setting, arch=setting.arch.apply(*edits, verify=False))
    edited = setting.arch is not first.arch
    if edited:
        check_forward(setting.arch.model, data)
    return Prepared(setting.arch.model, setting, setting.arch.plan if edited else None, tuple(notes))


def read_with(data: BaseTask, model: nn.Module) -> Inputs:
    """Return what a network is read with, where it is, for a task."""
    return Inputs.for_model(model, data.example(device_of(model)))


def resolve(
    model: nn.Module, data: BaseTask, recipe: Recipe, device: torch.device, found: dict[str, Any] | None
) -> Settings:
    """Take the settings of the checkpoint, else choose them for a network that is known to take the images.

    Raises:
        RecipeError: The recipe's rate is to be found, and there is none; or fp16 is asked for elsewhere than on CUDA.
    """
    if recipe.precision == "fp16" and device.type not in SCALES:
        raise RecipeError(
            f"recipe field precision=fp16: float16 is trained on CUDA devices only, and this is {device.type}; "
            "use bf16 or fp32"
        )
    if found is None:
        chosen = choose_settings(model, _batch(data, recipe, device), data.loss, recipe, device)
        return replace(chosen, lr=rate_test(model, data, recipe, chosen)) if recipe.lr == "auto" else chosen
    with readable(Path(FILE)):
        stored = json.loads(found["settings"])
        measured = tuple(Measurement(**values) for values in stored.pop("measured"))
        # Where the weights go is decided by this run; how they are computed, by the first one.
        known = replace(Settings(**stored, measured=measured), device=str(device), threads=torch.get_num_threads())
        if known.precision not in get_args(Kept) or known.memory_format not in ("contiguous", "channels_last"):
            raise ValueError(known)
        return known


def _batch(data: BaseTask, recipe: Recipe, device: torch.device) -> Batch:
    """Return a batch that looks like a training batch; labelled images are not read, which may be streamed."""
    if not isinstance(data, ImageData):
        return next(iter(loader_of(data.train, recipe.batch_size, seed=recipe.seed, device=device)))  # type: ignore[no-any-return]
    count = min(recipe.batch_size, len(data.train))
    return torch.randn(count, *data.shape, device=device), data.train.labels[:count].to(device)


def check_values(model: nn.Module) -> None:
    """Refuse a network on the meta device, where weights have a shape and no values, or with sparse weights.

    Raises:
        DataError: Names the first such weight.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        which = f"{name} of {type(model).__name__}"
        if tensor.layout is not torch.strided:
            raise DataError(f"{which} is a sparse tensor, which no training here takes; give it to_dense()")
        if tensor.is_meta:
            raise DataError(
                f"{which} is on the meta device and has no values; build the network without torch.device('meta'), or "
                "give it values with to_empty() and load_state_dict()"
            )


def check_forward(model: nn.Module, data: BaseTask) -> int:
    """Try two images, so that data that do not fit end in one line before any training.

    Returns:
        How many scores the network gives per image; 0 where the task is not classification.

    Raises:
        DataError: The network refuses the images, or has too few outputs.
    """
    if not isinstance(data, ImageData):
        data.check(model)
        return 0
    shape = "x".join(map(str, data.shape))
    images = torch.zeros(2, *data.shape, device=device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            scores = single_tensor(model(images))
    except (RuntimeError, ValueError) as error:
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if kinds - {torch.float32}:
            named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise DataError(
                f"{data.name}: the network's weights are {named}, and images come as float32: give model.float(); "
                "a recipe's precision: bf16 computes in bfloat16 all the same"
            ) from error
        raise DataError(
            f"{data.name}: the network does not take its {shape} images ({first_line(error)}); load the data "
            "with another input_shape, or change the network's first layer"
        ) from error
    if scores.ndim != 2 or scores.shape[1] < data.num_classes:
        raise DataError(
            f"{data.name}: {data.num_classes} classes and the network returns "
            f"{tuple(scores.shape[1:])} values per image; build it with {data.num_classes} outputs"
        )
    return scores.shape[1]


def _no_notice(record: logging.LogRecord) -> bool:
    """Drop Fabric's notice about the precision: the settings already say it."""
    return not record.getMessage().startswith(("Using bfloat16", "Using 16-bit"))


def make_fabric(accelerator: str, precision: str) -> Fabric:
    """Return Fabric on one device.

    Raises:
        RecipeError: There is no such accelerator here.
    """
    loggers = [logging.getLogger(f"lightning_fabric{name}") for name in ("", ".utilities.rank_zero")]
    for logger in loggers:
        logger.addFilter(_no_notice)
    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError(f"accelerator {accelerator!r}: {first_line(error)}; use auto or cpu") from error
    finally:
        for logger in loggers:
            logger.removeFilter(_no_notice)
