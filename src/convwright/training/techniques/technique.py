"""What a technique is: options that are checked, a card that says what it is good for, and what it does.

A new technique is one new file here. Either a frozen class of options under ``@technique("name")`` that overrides
what it needs of `Technique` (edits to the network, or an `Effect` on the training), or `field_technique`, where a
field of the recipe is the switch. ``Recipe(techniques={"name": {...}})`` picks it up from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from convwright.errors import RecipeError, did_you_mean, look_up

if TYPE_CHECKING:
    import torch
    from torch import nn

    from convwright.architecture import Architecture
    from convwright.edits import Edit
    from convwright.training.recipe.recipe import Recipe
    from convwright.training.tasks.base import BaseTask


@dataclass(frozen=True)
class Card:
    """What a person should know before turning a technique on; each a sentence or two.

    Attributes:
        does: What it does.
        cost: What it costs in time, memory, parameters.
        helps: Where it helps.
        hurts: Where it does not, and what it cannot be combined with.
        source: Paper, and the library that carries it out.
    """

    does: str
    cost: str
    helps: str
    hurts: str
    source: str


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that others learn from; it is copied before a training and stays as it is.

    Attributes:
        model: Maps images to outputs like those of the network in training.
        size: Height and width of the images that it takes; None: those of the network in training.
        channels: By module of the network in training, which channels of the teacher's module of that name its output
            channels are; None: all of them, in their order.
    """

    model: nn.Module
    size: tuple[int, int] | None = None
    channels: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True, eq=False)
class TechniqueContext:
    """What a technique may look at before the first batch.

    Attributes:
        recipe: The whole recipe.
        data: The data.
        arch: The network, read; with the edits of the techniques before this one. Read on first use.
        steps_per_epoch: Batches of an epoch.
        steps: Batches of the whole training.
        teacher: The trained original of the network; None where there is none.
    """

    recipe: Recipe
    data: BaseTask
    arch: Architecture
    steps_per_epoch: int
    steps: int
    teacher: Teacher | None = None


@dataclass(frozen=True, eq=False)
class Training:
    """What a technique works on during the training.

    Attributes:
        model: The network in training.
        optimizer: Its optimizer.
        setting: What was known before.
        device: Where it runs.
        forward: Runs the network, or another one given as its second argument, in the training's precision: inputs
            of a batch -> its output.
        rate: The schedule's share of the highest learning rate at a step, without techniques.
        batches: Yields the inputs of one epoch, normalised and augmented as in training; the training's own order
            goes on as if nothing had been read.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    setting: TechniqueContext
    device: torch.device
    forward: Callable[..., Any]
    rate: Callable[[int], float]
    batches: Callable[[], Iterator[Any]]


class Effect:
    """What a technique does during one training. Every hook does nothing unless it is overridden.

    Attributes:
        finishes: Whether `finish` changes the network; it is then judged once more.
    """

    finishes: bool = False

    def rate(self, factor: float, step: int) -> float:
        """Return the share of the highest learning rate for `step` (from 0), given the schedule's own."""
        return factor

    def batch(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return a changed batch.

        Args:
            images: (n, c, h, w) float32, normalised.
            targets: (n,) class numbers, or (n, classes) shares.
            step: From 0.
        """
        return images, targets

    def loss(self, inputs: Any, output: Any, loss: Tensor) -> Tensor:
        """Return a changed loss of a part of a batch; also called in each further pass over it, as SAM makes.

        Args:
            inputs: (n, c, h, w) float32 images, or whatever the task gives, as the network saw them.
            output: What the network returned, or the module that the task watches.
            loss: Mean loss over the images so far, shape ().
        """
        return loss

    def before_update(self, again: Callable[[], object], step: int) -> None:
        """Change the gradients before the optimizer's step.

        Args:
            again: Computes the gradients anew, at the present weights and on the same batch.
            step: From 0.
        """

    def after_step(self, step: int) -> None:
        """Look at the weights after the optimizer's step; `step` counts from 0."""

    def finish(self) -> None:
        """Leave the weights that shall be judged and handed back in the network."""

    def close(self) -> None:
        """Take everything off the network that must not stay on it; also called after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: tensors, numbers and text."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""


class Technique(BaseModel):
    """Options of a technique, and what it does.

    Attributes:
        name: As in the recipe.
        card: What a person should know.
        changes_network: Whether it edits the network before training.
        excludes: Techniques that it cannot be combined with, and why.
        classifies: Whether it needs images with one class each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    card: ClassVar[Card]
    changes_network: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}
    classifies: ClassVar[bool] = False

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Return warnings, one line each: settings that have no effect here.

        Raises:
            RecipeError: It cannot work with this network, data or recipe.
        """
        return ()

    def edits(self, arch: Architecture) -> tuple[Edit, ...]:
        """Return the edits that it makes to the network before training."""
        return ()

    def effect(self, training: Training) -> Effect | None:
        """Return what it does during a training; None for nothing."""
        return None


@dataclass(frozen=True)
class Entry:
    """One technique in the registry.

    Attributes:
        name: As in the recipe and on the command line.
        card: What a person should know.
        kind: Its options; None where fields of the recipe are the switch.
        fields: Fields of the recipe that turn it on.
        off: Values of these fields that turn it off.
    """

    name: str
    card: Card
    kind: type[Technique] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)

    def switched(self, recipe: Recipe, on: bool = True, **options: Any) -> Recipe:
        """Return a recipe with this technique on (with these options) or off.

        Raises:
            RecipeError: Unknown option, or a value out of its range.
        """
        if self.kind is None:
            unknown = [option for option in options if option not in self.fields]
            if unknown:
                raise RecipeError(
                    f"technique {self.name!r} has no option {unknown[0]!r}.{did_you_mean(unknown[0], self.fields)}"
                )
            return recipe.updated(**({**self.fields, **options} if on else self.off))
        others = {name: made for name, made in recipe.techniques.items() if name != self.name}
        return recipe.updated(techniques={**others, self.name: options} if on else others)


TECHNIQUES: dict[str, Entry] = {}
_Kind = TypeVar("_Kind", bound=type[Technique])


def technique(name: str, card: Card) -> Callable[[_Kind], _Kind]:
    """Return a decorator that files a class of options as a technique."""

    def file(kind: _Kind) -> _Kind:
        kind.name, kind.card = name, card
        TECHNIQUES[name] = Entry(name, card, kind)
        return kind

    return file


def field_technique(name: str, card: Card, fields: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    """File a technique whose switch is a field of the recipe."""
    TECHNIQUES[name] = Entry(name, card, None, fields, off)


def technique_named(name: str) -> Entry:
    """Return what is known about a technique.

    Raises:
        RecipeError: There is none of that name; the nearest ones are listed.
    """
    return look_up(name, TECHNIQUES, "technique", RecipeError)


def made(name: str, options: Any) -> Technique | None:
    """Return a technique from what stands in a recipe: options, ``true``, nothing (defaults), or ``false``.

    Raises:
        RecipeError: It is unknown, or its switch is a field of the recipe.
        pydantic.ValidationError: An option is unknown or out of range.
    """
    entry = technique_named(name)
    if entry.kind is None:
        shown = ", ".join(f"{key}: {value}" for key, value in entry.fields.items())
        raise RecipeError(f"technique {name!r} is a field of the recipe itself; write `{shown}`")
    if options is False:
        return None
    if isinstance(options, entry.kind):
        return options
    return entry.kind.model_validate({} if options is None or options is True else options)
