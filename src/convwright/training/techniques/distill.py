"""Distillation: a trained network, by default the original of the one in training, says what each image looks like."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.architecture.capture.pytrees import joined, run_model
from convwright.devices import device_of, to_host
from convwright.edits import kept_channels
from convwright.errors import EditError, RecipeError, first_line
from convwright.training.data.data import ImageData
from convwright.training.data.resized import image_size
from convwright.training.evaluate import eval_mode
from convwright.training.settings import autocast, single_tensor
from convwright.training.tasks.base import kept_output
from convwright.training.techniques.mixing import shares
from convwright.training.techniques.technique import (
    Card,
    Effect,
    Teacher,
    Technique,
    TechniqueContext,
    Training,
    technique,
)

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.training.recipe.recipe import Recipe

ORIGINAL = "original"
_MOST_CACHED = 2**27  # numbers: half a gigabyte
_MIXING = ("mixup", "cutmix", "progressive_resizing")  # they make new images of those of the data


def feature_loss(own: Tensor, taught: Tensor) -> Tensor:
    """Return the mean over images of how far two feature maps are apart, squared, as a share of the teacher's square.

    Args:
        own: (n, c, ...) of the network in training.
        taught: The same channels of the teacher; a map of another size is averaged to that of `own`.
    """
    own, taught = own.float(), taught.float()
    if own.ndim == 4 and own.shape[2:] != taught.shape[2:]:
        taught = F.adaptive_avg_pool2d(taught, (own.shape[2], own.shape[3]))
    apart, whole = ((each.square().flatten(1).mean(1)) for each in (own - taught, taught))
    return (apart / whole.clamp_min(1e-12)).mean()


def feature_modules(arch: Architecture) -> dict[str, str]:
    """Return the modules that end the stages, with the block or else the layer that each is the end of."""
    blocks, modules = {block.name: block for block in arch.blocks}, dict(arch.model.named_modules())
    found: dict[str, str] = {}
    for stage in arch.stages:
        ends = [(blocks[name].modules[-1], name) for name in stage.blocks if blocks[name].modules]
        found |= dict((ends or [(name, name) for name in stage.layers if name in modules])[-1:])
    return found


def teacher_for(edited: Architecture, original: Architecture) -> Teacher:
    """Return a network as the teacher of what edits made of it, with the channels that were kept at each stage's end.

    Args:
        edited: The network to be trained.
        original: What was read, with trained weights.
    """
    channels = {}
    for module, name in feature_modules(edited).items():
        with suppress(EditError):  # of a layer that an edit brought in: it has no counterpart
            channels[module] = kept_channels(original, edited, name).tolist()
    return Teacher(original.model, image_size(original), channels)


@technique(
    "distill",
    Card(
        does="Adds to the loss how far the class probabilities, softened by a temperature, are from those that "
        "a trained network gives for the very same images, augmented and mixed; with `features` also how far the maps "
        "at the end of each stage are from the teacher's at the channels that were kept. The teacher is the untouched "
        "network that a search began with, a file of its weights, or any module (`train(teacher=...)`). It sees images "
        "at its own size.",
        cost="A forward pass of the teacher per batch (two with sam), about a third of a step more, and its weights in "
        "memory. Where nothing is random, no augmentation and no mixing, its scores are computed once.",
        helps="Images without labels, or with few right ones (`labels: false`); teachers that are clearly better.",
        hurts="There has to be a good teacher. Where labels are right and a cut network is almost as good as its "
        "teacher, it changes little.",
        source="Hinton, Vinyals and Dean 2015; features without projection, as the kept channels are known.",
    ),
)
class Distill(Technique):
    """Options of distillation.

    Attributes:
        teacher: ``original``, or a .safetensors file with weights of the untouched network; ``{seed}`` in it is the
            recipe's seed.
        weight: The teacher's part of the loss, the rest is the labels'; 0: features alone teach.
        temperature: What both networks' scores are divided by; the divergence is multiplied by its square.
        features: Weight of the difference of feature maps, each relative to the teacher's; 0: off.
        labels: Whether the labels count at all; else the teacher alone teaches.
    """

    teacher: str = ORIGINAL
    weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    features: float = Field(0.0, ge=0, allow_inf_nan=False)
    labels: bool = True

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse a teacher that is not there or does not fit, before any training."""
        if not self.active:
            return ("techniques.distill has no effect: its weights are 0",)
        student, teacher = setting.arch.model, self.taught(setting)
        inputs = joined([setting.data.example(device_of(student))] * 2)
        lesson = _Lesson(self, setting, student, teacher, lambda batch, model: run_model(model, batch))
        try:
            lesson.check(inputs)
        finally:
            lesson.close()
        return ()

    @property
    def active(self) -> bool:
        """Whether it changes the loss."""
        return not self.labels or self.weight > 0 or self.features > 0

    def effect(self, training: Training) -> Effect | None:
        """Return the effect on the loss."""
        if not self.active:
            return None
        teacher = self.taught(training.setting)
        return _Lesson(self, training.setting, training.model, teacher, training.forward, training.batches)

    def taught(self, setting: TechniqueContext) -> Teacher:
        """Return a copy of the teacher.

        Raises:
            RecipeError: There is none, or the file's weights do not fit.
        """
        known = setting.teacher
        if self.teacher != ORIGINAL:
            base = known or Teacher(setting.arch.model)
            return Teacher(_with_weights(base.model, self.teacher, setting.recipe, "distill"), base.size, base.channels)
        if known is None:
            raise RecipeError(
                "techniques.distill.teacher=original: there is no trained original here; give trained --weights, a "
                ".safetensors file as teacher, or in Python train(teacher=network)"
            )
        return Teacher(copy.deepcopy(known.model), known.size, known.channels)


class _Lesson(Effect):
    def __init__(
        self,
        asked: Distill,
        setting: TechniqueContext,
        student: nn.Module,
        teacher: Teacher,
        forward: Callable[..., Any],
        batches: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self.asked, self.forward, self.batches = asked, forward, batches
        parameter = next(student.parameters())
        last = any(p.ndim == 4 and not p.is_contiguous() for p in student.parameters())
        self.model = teacher.model.to(parameter.device).eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        self.size = teacher.size
        self.channels = _channels(teacher, setting.arch) if asked.features else {}
        self.student, self.hooks = student, ExitStack()
        self.own, self.others = self._tapped(student, True), self._tapped(self.model, False)
        random = setting.recipe.augment.active or any(name in setting.recipe.techniques for name in _MIXING)
        alone = not torch.distributed.is_initialized()
        self.task = setting.data
        few = isinstance(self.task, ImageData) and len(self.task.train) * self.task.num_classes <= _MOST_CACHED
        self.caches = alone and few and not random and not self.channels
        self.said: dict[int, Tensor] = {}

    def _tapped(self, model: nn.Module, gradients: bool) -> dict[str, Tensor]:
        """Return what modules of a network return in each pass from now on, with gradients or without."""
        seen: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and torch.is_grad_enabled() == gradients:
                seen[name] = output

        for name in self.channels:
            self.hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(keep, name)))
        return seen

    def check(self, inputs: Any) -> None:
        """Try two samples: the outputs must match, and a feature map must."""
        with torch.no_grad():
            taught = self.scores(inputs)
        with eval_mode(self.student), torch.enable_grad(), kept_output(self.task.watched(self.student)) as kept:
            run_model(self.student, inputs)
        theirs, ours = ([tuple(each.shape[1:]) for each in part] for part in (taught, self.task.outputs(kept[0])))
        if theirs != ours:
            raise RecipeError(
                f"techniques.distill.teacher={self.asked.teacher}: it returns {_listed(theirs)} values per "
                f"image and the network {_listed(ours)}; give a teacher of the same classes"
            )
        if self.asked.features and not self.pairs():
            raise RecipeError(
                "techniques.distill.features: no stage ends in channels that the teacher has, too; set features: 0"
            )

    def scores(self, inputs: Any) -> Sequence[Tensor]:
        """Return what the teacher says of inputs; of images that it is sure to see again it is kept."""
        if self.caches and not self.said:
            for batch in self.batches():
                self.said |= dict(zip(_keys(batch), self.computed(batch)[0], strict=True))
        known = [self.said.get(key) for key in _keys(inputs)] if self.caches else [None]
        return self.computed(inputs) if any(row is None for row in known) else [torch.stack(known)]  # type: ignore[arg-type]

    def computed(self, inputs: Any) -> Sequence[Tensor]:
        """Return the teacher's outputs, of images at its own resolution."""
        if self.size is not None and isinstance(self.task, ImageData) and tuple(inputs.shape[2:]) != tuple(self.size):
            inputs = F.interpolate(inputs, self.size, mode="bilinear", antialias=True)
        with torch.no_grad(), kept_output(self.task.watched(self.model)) as kept:
            self.forward(inputs, self.model)
            return self.task.outputs(kept[0])

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return the student's feature maps of the last pass beside the same channels of the teacher's."""
        found = [_kept(own, self.others[n], self.channels[n]) for n, own in self.own.items() if n in self.others]
        self.own.clear()
        self.others.clear()
        return [pair for pair in found if pair is not None]

    def loss(self, inputs: Any, output: Any, loss: Tensor) -> Tensor:
        asked, task = self.asked, self.task
        divergence = task.distance(task.outputs(output), self.scores(inputs), asked.temperature)
        loss = torch.lerp(loss, divergence, asked.weight) if asked.labels else divergence
        losses = [feature_loss(mine, other) for mine, other in self.pairs()] if asked.features else []
        return loss + asked.features * torch.stack(losses).mean() if losses else loss

    def close(self) -> None:
        self.hooks.close()

    def state_dict(self) -> dict[str, Any]:
        mark = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            mark.update(to_host(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return {"teacher": mark.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["teacher"] != self.state_dict()["teacher"]:
            raise RecipeError("techniques.distill: the checkpoint was trained with another teacher; give the same one")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _channels(teacher: Teacher, arch: Architecture) -> dict[str, Sequence[int] | None]:
    """Return the modules that both networks have, with the teacher's channels that the student's are; None: all."""
    found = dict.fromkeys(feature_modules(arch)) if teacher.channels is None else teacher.channels
    there = dict(teacher.model.named_modules())
    return {name: channels for name, channels in found.items() if name in there}


def _kept(own: Tensor, other: Tensor, channels: Sequence[int] | None) -> tuple[Tensor, Tensor] | None:
    """Return the channels that two maps share (-1: the teacher has none); None where they do not correspond."""
    for axis in (1, -1) if own.ndim == other.ndim > 1 else ():
        numbers = torch.arange(other.shape[axis]) if channels is None else torch.as_tensor(channels)
        mine = (numbers >= 0).nonzero().flatten()
        if len(numbers) == own.shape[axis] and len(mine) and int(numbers.max()) < other.shape[axis]:
            index = (each.to(own.device) for each in (mine, numbers[mine]))
            here, there = (each.index_select(axis, i) for each, i in zip((own, other), index, strict=True))
            if here.shape == there.shape or (axis == 1 and own.ndim == 4):
                return here, there
    return None


def _keys(images: Tensor) -> list[int]:
    """Return a number per image that is the same for the same bits, wherever in a batch the image stands."""
    bits = images.float().flatten(1).contiguous().view(torch.int32).long()
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device) * 0x9E3779B97F4A7C15 // 2
    return [int(key) for key in (bits * (places | 1)).sum(1).tolist()]


def _with_weights(model: nn.Module, teacher: str, recipe: Recipe, name: str) -> nn.Module:
    """Return a copy of a network with weights from a file, if they fit."""
    path, copied = Path(teacher.replace("{seed}", str(recipe.seed))), copy.deepcopy(model)
    if not path.is_file():
        raise RecipeError(f"techniques.{name}.teacher={path}: no such file; train the teacher first")
    try:
        load_model(copied, str(path))
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error, "damaged")
        raise RecipeError(f"techniques.{name}.teacher={path}: not the weights of this network ({reason})") from error
    return copied


# ------------------------------------------------------------------ the earlier form, for recorded recipes


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
        does="The earlier form of distill, kept for recorded recipes: replaces a part of each target by the "
        "probabilities that a trained network of the same kind gives for the images.",
        cost="As distill.",
        helps="Use distill.",
        hurts="A technique after it in the recipe may still change the images. No features, no squared temperature.",
        source="Hinton, Vinyals and Dean 2015, by mixing targets; without their factor of the squared temperature.",
    ),
)
class Distillation(Technique):
    """Options of the earlier form.

    Attributes:
        teacher: A .safetensors file with weights of this network; ``{seed}`` in it is the recipe's seed.
        weight: The teacher's part of the targets; 0: none.
        temperature: What its scores are divided by.
    """

    teacher: str = "teacher.safetensors"
    weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse a file that is not there or does not fit, before any training."""
        if self.weight == 0:
            return ("techniques.distillation has no effect: its weight is 0",)
        _with_weights(setting.arch.model, self.teacher, setting.recipe, self.name)
        return ()

    def effect(self, training: Training) -> Effect | None:
        """Return the effect on targets."""
        if self.weight == 0:
            return None
        teacher = _with_weights(training.model, self.teacher, training.setting.recipe, self.name)
        return _MixedTargets(self, teacher.to(training.device).eval(), training)


class _MixedTargets(Effect):
    def __init__(self, asked: Distillation, teacher: nn.Module, training: Training) -> None:
        self.asked, self.teacher = asked, teacher
        self.device, self.precision = training.device, training.setting.recipe.precision

    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), autocast(self.device, self.precision):
            scores = single_tensor(self.teacher(images))
        return images, distilled(targets, scores, self.asked.weight, self.asked.temperature)
