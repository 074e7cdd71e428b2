"""Learning rates as pure functions of the position: a checkpoint need not hold a schedule's state.

A new schedule is one function under ``@schedule("name")``: it takes a `Position` and, as keyword-only arguments,
its options. ``warmup`` among them is the recipe's field of that name; the others are the keys of the recipe's
``schedule_options``, with the ranges that their annotations give.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from convwright.errors import RecipeError, look_up

_START, _END = 1 / 25, 1 / 25 / 1e4  # the defaults of torch's OneCycleLR


@dataclass(frozen=True)
class Position:
    """Where a training stands.

    Attributes:
        step: Steps that are done; the first step has 0.
        total: Steps of the whole training.
        steps_per_epoch: Steps of a whole epoch; the last epoch may have fewer.

    Raises:
        RecipeError: There are no steps, or the step is not one of them.
    """

    step: int
    total: int
    steps_per_epoch: int = 1

    def __post_init__(self) -> None:
        if self.total < 1 or self.steps_per_epoch < 1:
            raise RecipeError(
                f"a schedule over {self.total} steps, {self.steps_per_epoch} per epoch: there must be at least one; "
                "give more data or more epochs"
            )
        if not 0 <= self.step < self.total:
            raise RecipeError(f"step {self.step} is outside of the schedule's steps 0..{self.total - 1}")

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, an unfinished one included."""
        return -(-self.total // self.steps_per_epoch)

    def by_epoch(self) -> Position:
        """Return the same position counted in epochs."""
        return Position(self.epoch, self.epochs)


class Rates(NamedTuple):
    """What a schedule answers.

    Attributes:
        factor: Share of the recipe's learning rate.
        momentum: Momentum, or the first beta; None: as the recipe says.
    """

    factor: float
    momentum: float | None = None


@dataclass(frozen=True)
class Schedule:
    """One schedule in the registry.

    Attributes:
        name: As in the recipe.
        function: Position and options -> share of the highest rate, or `Rates`.
        options: Its options with their ranges and defaults.
        warms_up: Whether it reads the recipe's ``warmup``.
        about: One line.
    """

    name: str
    function: Callable[..., float | Rates]
    options: type[BaseModel]
    warms_up: bool
    about: str

    def rates(self, at: Position, warmup: float = 0.0, options: Mapping[str, Any] | None = None) -> Rates:
        """Return rate and momentum at a position.

        Raises:
            RecipeError: The schedule is impossible over so many steps.
        """
        more = {"warmup": warmup} if self.warms_up else {}
        found = self.function(at, **(options or {}), **more)
        return found if isinstance(found, Rates) else Rates(found)


SCHEDULES: dict[str, Schedule] = {}
_Function = TypeVar("_Function", bound=Callable[..., float | Rates])


def schedule(name: str) -> Callable[[_Function], _Function]:
    """Return a decorator that files a function as a schedule."""

    def file(function: _Function) -> _Function:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        fields: dict[str, Any] = {
            p.name: (hints[p.name], ... if p.default is inspect.Parameter.empty else p.default)
            for p in keywords
            if p.name != "warmup"
        }
        options = create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
        about = (inspect.getdoc(function) or "").partition("\n")[0]
        SCHEDULES[name] = Schedule(name, function, options, any(p.name == "warmup" for p in keywords), about)
        return function

    return file


def schedule_named(name: str) -> Schedule:
    """Return a schedule.

    Raises:
        RecipeError: There is none of that name; the nearest ones are listed.
    """
    return look_up(name, SCHEDULES, "schedule", RecipeError)


def _between(start: float, end: float, share: float) -> float:
    """Return the cosine interpolation from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _check_descent(at: Position, warmup: float) -> None:
    """Refuse a warm-up that leaves less than one step for the way down."""
    left = at.total * (1 - warmup)
    if left < 1 - 1e-9:
        raise RecipeError(
            f"recipe field warmup={warmup:g}: of {at.total} step(s) it leaves {left:.2g} for the rate to come down in; "
            f"use at most {math.floor(1e6 * (1 - 1 / at.total)) / 1e6:g}, more epochs or schedule: constant"
        )


@schedule("onecycle")
def onecycle(
    at: Position,
    *,
    warmup: float,
    cycle_momentum: bool = False,
    momentum_low: Annotated[float, Field(ge=0, lt=1)] = 0.85,
    momentum_high: Annotated[float, Field(ge=0, lt=1)] = 0.95,
) -> Rates:
    """One cycle (Smith 2018): up for the share `warmup` of all steps, then down almost to zero.

    Equals torch's OneCycleLR with cosine annealing, stepped per batch. With `cycle_momentum` the momentum goes the
    other way, from `momentum_high` to `momentum_low` and back, as torch's does by default.

    Raises:
        RecipeError: There are fewer than two steps, or none on the way down.
    """
    if at.total < 2:
        raise RecipeError(
            "recipe field schedule='onecycle': a cycle of one step goes neither up nor down; "
            "train for more steps (more epochs or a smaller batch_size) or use schedule: constant"
        )
    _check_descent(at, warmup)
    top = max(warmup * at.total - 1, 0.0)
    rising = at.step < top
    share = at.step / top if rising else (at.step - top) / (at.total - 1 - top)
    factor = _between(_START, 1.0, share) if rising else _between(1.0, _END, share)
    if not cycle_momentum:
        return Rates(factor)
    ends = (momentum_high, momentum_low) if rising else (momentum_low, momentum_high)
    return Rates(factor, _between(*ends, share))


@schedule("cosine")
def cosine(at: Position, *, warmup: float, per_epoch: bool = False) -> float:
    """Linear warm-up over the share `warmup`, then half a cosine down to zero.

    Without warm-up it equals torch's CosineAnnealingLR, stepped per batch, or with `per_epoch` per epoch.

    Raises:
        RecipeError: The warm-up leaves no step (no epoch, with `per_epoch`) for the way down.
    """
    at = at.by_epoch() if per_epoch else at
    _check_descent(at, warmup)
    start = warmup * at.total
    if at.step < start:
        return (at.step + 1) / (math.floor(start) + 1)
    return _between(1.0, 0.0, (at.step - start) / (at.total - start))


@schedule("constant")
def constant(at: Position, *, warmup: float) -> float:
    """Linear warm-up over the share `warmup`, then the same rate."""
    return min((at.step + 1) / (math.floor(warmup * at.total) + 1), 1.0)


@schedule("step")
def step(
    at: Position, *, step_epochs: Annotated[int, Field(ge=1)] = 5, gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
) -> float:
    """Times `gamma` after every `step_epochs` epochs; equals torch's StepLR, stepped per epoch."""
    return gamma ** (at.epoch // step_epochs)


@schedule("triangular")
def triangular(
    at: Position, *, cycles: Annotated[int, Field(ge=1)] = 4, low: Annotated[float, Field(gt=0, lt=1)] = 0.1
) -> float:
    """Cyclical rate (Smith 2017): `cycles` times straight up from the share `low`, and straight down again.

    Equals torch's CyclicLR in its mode "triangular", stepped per batch.

    Raises:
        RecipeError: A cycle would have fewer than two steps.
    """
    half = at.total / (2 * cycles)
    if half < 1:
        raise RecipeError(
            f"recipe field schedule_options.cycles={cycles}: {at.total} step(s) have room for {at.total // 2} "
            "cycle(s); use fewer, or train for more steps"
        )
    cycle = math.floor(1 + at.step / (2 * half))
    x = abs(at.step / half - 2 * cycle + 1)
    return low + (1 - low) * max(0.0, 1 - x)
