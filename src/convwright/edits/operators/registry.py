"""The registry of operators: register one, check its options, build it in a layer's place.

An operator is a function ``(old, site, *, option=default, ...) -> new module`` under ``@operator``. Its options
are its keyword-only arguments; their annotations (``int``, ``float``, ``bool``, ``str`` or a ``Literal`` of
strings) are what is checked. It refuses a layer with :func:`refuse`, and leaves ``old`` as it is.
"""

from __future__ import annotations

import inspect
import typing
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from convwright.edits.plan_file import fits
from convwright.edits.surgery import MOST_CHANNELS, check_room, copied, stand_ins, weight_bytes
from convwright.errors import EditError, did_you_mean


@dataclass(frozen=True)
class Site:
    """Where an operator goes.

    Attributes:
        layer: the layer's name.
        input_shape: shape of its input in one call, (n, c, *spatial).
        output_shape: shape of its output in that call.
        device: where the network lies, for layers that have no weights to tell.
        dtype: its type, likewise.
        map_shape: where the input is a flattened map, the shape of that map, (n, c, *spatial); else empty.
    """

    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    dtype: torch.dtype = field(default=torch.float32, compare=False)
    map_shape: tuple[int, ...] = ()


Builder = Callable[..., nn.Module]
_Function = TypeVar("_Function", bound=Builder)


@dataclass(frozen=True)
class OperatorEntry:
    """One operator.

    Attributes:
        name: the name in a ``Replace`` edit.
        function: what builds it, ``(old, site, **options)``.
        doc: what it inserts, in one line.
        options: the options and their defaults.
        approximate: the function of the network changes at insertion.
        source: where it comes from.
    """

    name: str
    function: Builder
    doc: str
    options: Mapping[str, Any]
    approximate: bool
    source: str


OPERATORS: dict[str, OperatorEntry] = {}


def operator(name: str, *, source: str, approximate: bool = True) -> Callable[[_Function], _Function]:
    """Register a function that builds an operator; the first line of its docstring says what it inserts."""

    def register(function: _Function) -> _Function:
        doc = (inspect.getdoc(function) or "").partition("\n")[0]
        parameters = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        OPERATORS[name] = OperatorEntry(name, function, doc, options, approximate, source)
        return function

    return register


def build(name: str, old: nn.Module, site: Site, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an operator in the place of a layer.

    What is drawn at random depends on the layer's name only, so a plan gives the same network again; the global
    random state stays as it was.

    Args:
        name: one of ``OPERATORS``.
        old: the layer that is replaced; it is left as it is and shares no tensor with the result.
        site: the layer's name and its shapes in one call.
        options: the operator's options; those left out take their defaults.

    Returns:
        A module that maps ``site.input_shape`` to ``site.output_shape``, on the device, in the type and in
        the mode (training or eval) of ``old``. Weights that were frozen stay so.

    Raises:
        EditError: there is no such operator or option, a value is out of range, or the layer is none that the
            operator can replace; the message names the layer, the reason and the remedy.
    """
    options = check_options(name, options or {}, site.layer)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(site.layer.encode()))
        try:
            _check(name, old, site, options)
            new = OPERATORS[name].function(old, site, **options)
        except ValueError as error:
            raise EditError(f"{site.layer} cannot become {name!r}: {error}. Choose other options.") from error
    return new.train(old.training)


def _check(name: str, old: nn.Module, site: Site, options: Mapping[str, Any]) -> None:
    """Build the operator without memory first, see how large it is, and compare the shape of its output."""
    with torch.device("meta"):
        empty = copied(old, stand_ins(old, lambda _, tensor: torch.empty_like(tensor, device="meta")))
        new = OPERATORS[name].function(empty, replace(site, device=torch.device("meta")), **options)
    check_room(weight_bytes(old), weight_bytes(new), False, f"{name!r} in the place of {site.layer}")
    tensors = (*new.parameters(), *new.buffers())
    kind = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), site.dtype)
    try:
        with torch.no_grad():  # in eval mode: in training mode, norms refuse a single value per channel
            result = new.eval()(torch.empty(site.input_shape, device="meta", dtype=kind))
    except RuntimeError as error:
        raise EditError(
            f"{site.layer} cannot become {name!r} on an input of shape {site.input_shape}: {error}"
        ) from error
    if tuple(result.shape) != tuple(site.output_shape):
        wrong = f"it would give the shape {tuple(result.shape)} instead of {tuple(site.output_shape)}"
        refuse(name, site, wrong, "Choose another layer or another input size")


def refuse(name: str, site: Site, reason: str, remedy: str) -> NoReturn:
    """Refuse to put an operator in a layer's place.

    Raises:
        EditError: always.
    """
    raise EditError(f"{site.layer} cannot become {name!r}: {reason}. {remedy}.")


def check_options(name: str, options: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """Return all options of an operator, those given and the defaults of the others.

    Raises:
        EditError: the operator or an option is unknown, or a value has the wrong type.
    """
    if name not in OPERATORS:
        near = did_you_mean(name, OPERATORS) or f" There are {', '.join(sorted(OPERATORS))}."
        raise EditError(f"{layer}: there is no operator {name!r}.{near}")
    entry = OPERATORS[name]
    types = typing.get_type_hints(entry.function)
    for option, value in options.items():
        if option not in entry.options:
            near = did_you_mean(option, entry.options) or f" It has {', '.join(entry.options)}."
            raise EditError(f"{layer}: operator {name!r} has no option {option!r}.{near}")
        if not fits(types[option], value):
            raise EditError(f"{layer}: option {option!r} of {name!r} is {_said(types[option])}, not {value!r}.")
        if isinstance(value, int) and value > MOST_CHANNELS:
            raise EditError(f"{layer}: option {option!r} of {name!r} is at most {MOST_CHANNELS:,}, not {value:,}.")
    return {**entry.options, **options}


def _said(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
