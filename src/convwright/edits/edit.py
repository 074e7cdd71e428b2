"""What an edit is: data with a name, and one function that carries out a run of them.

A new edit is one new file: a frozen dataclass that derives from ``Edit`` and a function registered with
``@carries_out``. Plans, their JSON and the command line pick it up from the registry.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt
from torch import Tensor, nn
from torch.optim import Optimizer

from convwright.architecture import Architecture, ChannelGroup
from convwright.architecture.capture.graph import Capture
from convwright.architecture.channels import Axis, Ints
from convwright.errors import EditError, did_you_mean

if TYPE_CHECKING:
    from convwright.edits.constraints import DivisorLike

Importance = Callable[[ChannelGroup, Architecture], npt.ArrayLike]


@dataclass(frozen=True)
class Edit:
    """One change to a network, as data. Derive, and register a function that carries it out."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as plain JSON values; fields at their default are left out."""
        values: dict[str, Any] = {"edit": self.kind}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                values[item.name] = list(value) if isinstance(value, tuple) else value
        return values

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if isinstance(value := getattr(self, item.name), list):  # as JSON gives it
                object.__setattr__(self, item.name, tuple(value))


@dataclass(frozen=True)
class Options:
    """How edits are carried out.

    Attributes:
        divisor: new widths are rounded to multiples of this.
        importance: which channels stay: a name, a function, or scores by group name.
        verify: measure the difference to the original.
        optimizer: an optimizer whose parameters and state follow.
    """

    divisor: DivisorLike = 1
    importance: Any = "l2"
    verify: bool = True
    optimizer: Optimizer | None = None


@dataclass(frozen=True)
class Measured:
    """How far a changed network is from what its edits promise.

    Attributes:
        difference: the largest absolute difference, divided by the largest output where that exceeds 1.
        tolerance: differences at or below this are rounding.
        notes: what could not be measured as usual.
        rounding: the difference is no larger than what rounding becomes in this network.
        blind: the output was the same for every input, by chance of the weights: nothing was seen.
    """

    difference: float
    tolerance: float = 1e-10
    notes: tuple[str, ...] = ()
    rounding: bool = False
    blind: bool = False

    @property
    def exact(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Change:
    """What one edit did.

    Attributes:
        edit: the edit, as it was carried out.
        exact: the measured difference is at rounding level (1e-10 in float64); ``None`` if not measured.
        max_difference: largest absolute difference between the new network's output and what the edit
            promises, on random input with random weights and statistics, divided by the largest output where
            that exceeds 1. Edits applied in one call are measured together. In float64; a network whose code
            allows only float32 is measured in float32, with 1e-4 as rounding level, and a note says so.
        macs: multiply-accumulates per sample before and after.
        params: parameters before and after.
        coupled: other groups whose size had to change along.
        notes: what a person should know, e.g. why the result is not exact.
        keeps_function: the network computes what it did before this edit, as measured: exact, and nothing was cut
            away (growth, added blocks, larger kernels). An exact shrink equals the original without what it dropped,
            which is another function.
    """

    edit: Edit
    exact: bool | None
    max_difference: float | None
    macs: tuple[int, int]
    params: tuple[int, int]
    coupled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    keeps_function: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """What carrying out a run of edits of one kind gave.

    Attributes:
        model: the changed copy.
        edits: the edits with everything that was decided on the way filled in.
        max_difference: see ``Change``; ``None`` if not measured.
        steps: costs after each edit, (macs, params), when known before counting.
        coupled: per edit, the groups that changed along.
        notes: per edit.
        moved: old parameter or buffer, by identity -> its successor, for optimizers and for origins.
        example_input: a new example input, if the edit changes its shape.
        keeps: per edit, whether its promise is the original itself, nothing cut away; none of them where empty.
        takes: (old tensor, axis) -> the old index behind each new one (-1: none), for axes that change.
        capture: what the copy executes, where it was run.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    max_difference: Measured | None
    steps: tuple[tuple[int, int], ...]
    coupled: tuple[tuple[str, ...], ...]
    notes: tuple[tuple[str, ...], ...]
    moved: Mapping[int, Moved] = field(default_factory=dict)
    example_input: Tensor | None = None
    keeps: tuple[bool, ...] = ()
    takes: Mapping[Axis, Ints] = field(default_factory=dict)
    capture: Capture | None = None


@dataclass(frozen=True, eq=False)
class Moved:
    """A parameter's or buffer's successor, and how its elements were taken from the old one."""

    new: Tensor
    take: Callable[[Tensor], Tensor]


Carrier = Callable[[Architecture, Sequence[Any], Options], Outcome]
EDITS: dict[str, tuple[type[Edit], Carrier]] = {}


def carries_out(edit_type: type[Edit]) -> Callable[[Carrier], Carrier]:
    """Register the function that carries out a run of edits of one type."""

    def register(carrier: Carrier) -> Carrier:
        EDITS[edit_type.kind] = (edit_type, carrier)
        return carrier

    return register


def edit_from_dict(values: Mapping[str, Any]) -> Edit:
    """Make an edit from its JSON values.

    Raises:
        EditError: if the kind or a field is unknown.
    """
    kind = str(values.get("edit", ""))
    if kind not in EDITS:
        raise EditError(f"there is no edit {kind!r}.{did_you_mean(kind, EDITS)}")
    edit_type = EDITS[kind][0]
    known = inspect.signature(edit_type).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())  # an edit that checks its options itself
    given = {str(k): v for k, v in values.items() if k != "edit"}
    unknown = next((name for name in given if name not in known and not open_ended), None)
    if unknown is not None:
        raise EditError(f"edit {kind!r} has no field {unknown!r}.{did_you_mean(unknown, known)}")
    try:
        return edit_type(**given)
    except TypeError as error:
        raise EditError(f"edit {kind!r} is incomplete: {error}") from error


def refusal(check: Callable[..., object], *args: object) -> str | None:
    """Return why a check refuses an edit; ``None`` if it does not."""
    try:
        check(*args)
    except EditError as error:
        return str(error)
    return None


def check_distinct(names: Sequence[str], what: str) -> None:
    """Refuse a name that several edits have; ``what`` says what they do to it."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EditError(f"{twice} is {what}; name it once.")


def whole_numbers(given: object, count: int, what: str) -> tuple[int, ...]:
    """Return one whole number from 1 on per axis, from one for all axes or a row.

    Raises:
        EditError: if it is anything else.
    """
    row = tuple(given) if isinstance(given, list | tuple) else (given,) * count
    sizes = tuple(s for s in row if isinstance(s, int) and not isinstance(s, bool) and s > 0)
    if len(row) != count or len(sizes) != count:
        raise EditError(f"{what} must be a whole number from 1 on, or {count} of them, not {given!r}.")
    return sizes


def one_sample(shape: Sequence[int]) -> str:
    """Write the shape of one sample of a batch: ``3x224x224``."""
    return "x".join(map(str, shape[1:]))
