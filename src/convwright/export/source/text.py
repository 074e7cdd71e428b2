"""Expressions of the program that is written, and how they are laid out in lines.

The layout is that of ``ruff format`` with its usual width: a call that does not fit in its line gets its arguments
into the next one, and, if they do not fit there either, one line for each.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from convwright.errors import ConvwrightError

WIDTH = 88  # of a line: ruff's and black's own
_STEP = 4
_MOST_DIGITS = 7

MISSING: Any = inspect.Parameter.empty  # no default value


@dataclass(frozen=True)
class Text:
    """A piece of program that is never split."""

    text: str


@dataclass(frozen=True, eq=False)
class Hole:
    """A constant; where several modules share a class, it becomes an argument if they differ in it.

    Attributes:
        value: int, float, bool, str or a tuple of these.
        kind: what it may be merged with: ``"channels"``, ``"size"``, ``"depth"`` or the name of an option.
        name: what it is called where it is used, e.g. ``"in_channels"``.
        owner: name of the attribute that it belongs to, e.g. ``"conv1"``.
    """

    value: Any
    kind: str
    name: str
    owner: str = ""


@dataclass(frozen=True, eq=False)
class Arg:
    """An argument of a call; left out where its value turns out to be the default."""

    name: str  # "" if it is given by position
    value: Expr
    default: Any = MISSING


@dataclass(frozen=True, eq=False)
class Call:
    """``function(args)``."""

    function: Expr
    args: tuple[Arg, ...]


@dataclass(frozen=True, eq=False)
class Attr:
    """``base.name``."""

    base: Expr
    name: str


@dataclass(frozen=True, eq=False)
class Many:
    """``[a, b]``, ``(a, b)`` or ``{"a": a}``; keys make it a dictionary."""

    items: tuple[Expr, ...]
    brackets: str = "[]"
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Joined:
    """Pieces side by side, never split: ``x + y``, ``x[:, 3:5]``."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """``*[item for _ in range(count)]``."""

    item: Expr
    count: Hole


Expr = Text | Hole | Call | Attr | Many | Joined | Repeat
Names = Mapping[int, str]  # id of a hole -> the program text that stands for it


def literal(value: Any) -> str:
    """Return a constant as program text: everything in the program that a network, not this package, has named.

    Raises:
        ConvwrightError: the value is no constant, so that its ``repr`` may be any program.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        text = repr(float(value))
        return f'float("{text}")' if text in ("nan", "inf", "-inf") else text
    if isinstance(value, str):
        return '"' + repr(str(value))[1:-1].replace('"', '\\"') + '"'
    if isinstance(value, (tuple, list)):
        inner = ", ".join(literal(v) for v in value)
        closing = "," if len(value) == 1 and isinstance(value, tuple) else ""
        return f"({inner}{closing})" if isinstance(value, tuple) else f"[{inner}]"
    raise ConvwrightError(f"a {type(value).__name__} cannot be written as Python; export with --to pt2 or onnx")


def said(text: str) -> str:
    """Return a text as it stands in a docstring that it must not end."""
    return "\n".join(literal(line)[1:-1] for line in text.split("\n"))


def is_name(text: str) -> bool:
    """Whether a text may stand behind a dot, and means itself there: no other spelling, no name that a class hides."""
    private = text.startswith("__") and not text.endswith("__")
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and not private


def is_free(text: str) -> bool:
    """Whether a text may name a class or an argument of one: nothing that the program needs has that name."""
    return is_name(text) and text not in _TAKEN and not hasattr(builtins, text)


def is_index(text: str) -> bool:
    """Whether a text is a number as a list writes it."""
    return text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS and str(int(text)) == text


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


def positional(*values: Expr) -> tuple[Arg, ...]:
    """Return arguments that are given by position."""
    return tuple(Arg("", value) for value in values)


def holes(expr: object) -> Iterator[Hole]:
    """Yield the constants of an expression, in reading order: that of its fields."""
    if isinstance(expr, Hole):
        yield expr
    elif isinstance(expr, tuple):
        for part in expr:
            yield from holes(part)
    elif isinstance(expr, Arg | Call | Attr | Many | Joined | Repeat):
        yield from holes(tuple(vars(expr).values()))


_TAKEN = words(
    "self nn F Tensor Path OrderedDict Sequential Module ModuleList torch load load_file path state model weights"
) | frozenset(dir(nn.Sequential(nn.Identity())))


def flat(expr: Expr, names: Names | None = None) -> str:
    """Return an expression in one line; constants stand for themselves where `names` has nothing else."""
    known = names or {}
    return _flat(expr, lambda hole: known.get(id(hole), literal(hole.value)), known)


def template(expr: Expr) -> str:
    """Return what an expression looks like apart from its constants: equal text, equal code."""
    return _flat(expr, lambda hole: f"<{hole.kind}>", None)


def _flat(expr: Expr, name: Callable[[Hole], str], known: Names | None) -> str:
    if isinstance(expr, Text):
        return expr.text
    if isinstance(expr, Hole):
        return name(expr)
    if isinstance(expr, Call):
        args = ((f"{arg.name}=" if arg.name else "") + _flat(arg.value, name, known) for arg in shown(expr, known))
        return f"{_flat(expr.function, name, known)}({', '.join(args)})"
    if isinstance(expr, Attr):
        return f"{_flat(expr.base, name, known)}.{expr.name}"
    if isinstance(expr, Many):
        leads = [f"{literal(key)}: " for key in expr.keys] or [""] * len(expr.items)
        inner = ", ".join(lead + _flat(item, name, known) for lead, item in zip(leads, expr.items, strict=True))
        comma = "," if expr.brackets == "()" and len(expr.items) == 1 else ""
        return f"{expr.brackets[0]}{inner}{comma}{expr.brackets[1]}"
    if isinstance(expr, Joined):
        return "".join(_flat(part, name, known) for part in expr.parts)
    return f"*[{_flat(expr.item, name, known)} for _ in range({name(expr.count)})]"


def shown(call: Call, known: Names | None) -> list[Arg]:
    """Return the arguments of a call that are not at their defaults; all of them for a template."""

    def at_default(arg: Arg, known: Names) -> bool:
        if arg.default is MISSING or not isinstance(arg.value, Hole) or id(arg.value) in known:
            return False
        return type(arg.value.value) is type(arg.default) and bool(arg.value.value == arg.default)

    return [arg for arg in call.args if known is None or not at_default(arg, known)]


def laid_out(prefix: str, expr: Expr, indent: int, names: Names, suffix: str = "") -> list[str]:
    """Return ``prefix expr suffix`` as lines that are no longer than `WIDTH` where that is possible."""
    line = " " * indent + prefix + flat(expr, names) + suffix
    parts = _splittable(expr, names)
    if len(line) <= WIDTH or parts is None:
        return [line]
    opening, inner, closing = parts
    head, tail = " " * indent + prefix + opening, " " * indent + closing + suffix
    deeper = indent + _STEP
    one_line = " " * deeper + ", ".join(lead + flat(item, names) for lead, item in inner)
    if len(one_line) <= WIDTH:
        return [head, one_line, tail]
    body: list[str] = []
    comma = "," if len(inner) > 1 else ""
    for lead, item in inner:
        body += _item(lead, item, deeper, names, comma)
    return [head, *body, tail]


def _item(lead: str, item: Expr, indent: int, names: Names, suffix: str) -> list[str]:
    if not isinstance(item, Repeat):
        return laid_out(lead, item, indent, names, suffix)
    line = " " * indent + flat(item, names) + suffix
    if len(line) <= WIDTH:
        return [line]
    inner = laid_out("", item.item, indent + _STEP, names)
    count = names.get(id(item.count), literal(item.count.value))
    loop = " " * (indent + _STEP) + f"for _ in range({count})"
    return [" " * indent + "*[", *inner, loop, " " * indent + "]" + suffix]


def _splittable(expr: Expr, names: Names) -> tuple[str, list[tuple[str, Expr]], str] | None:
    """Return the opening, the items with what stands before each, and the closing of a call or list."""
    if isinstance(expr, Call):
        args = [(f"{arg.name}=" if arg.name else "", arg.value) for arg in shown(expr, names)]
        return (flat(expr.function, names) + "(", args, ")") if args else None
    if isinstance(expr, Many) and expr.items:
        leads = [f"{literal(key)}: " for key in expr.keys] or [""] * len(expr.items)
        return expr.brackets[0], list(zip(leads, expr.items, strict=True)), expr.brackets[1]
    return None
