"""Classes: which modules share one, and in which arguments they differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from convwright.export.source.bodies import Dims, Line
from convwright.export.source.drafts import ClassDraft, ModuleParts
from convwright.export.source.regions import SIZES
from convwright.export.source.text import MISSING, Arg, Call, Hole, Text, is_free

_CHANNEL_LIKE = frozenset({"channels", "size", "groups", "num_groups"})
_FACTORS = (2, 3, 4, 6, 8, 16)
_ORDER = ("in_channels", "in_features", "channels", "mid_channels", "out_channels", "out_features", "depth",
          "kernel_size", "stride", "padding", "dilation", "groups")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a class.

    Attributes:
        name: its name.
        values: what it is in each module that shares the class.
        kind: as of a `Hole`.
        default: the value that most of them have; MISSING for channels.
    """

    name: str
    values: tuple[Any, ...]
    kind: str
    default: Any = MISSING


@dataclass(frozen=True, eq=False)
class Class:
    """A class that is written.

    Attributes:
        name: its name.
        drafts: the modules that share it; all but their constants are equal.
        arguments: of its constructor.
        names: id of a constant of the first draft -> the expression that stands for it.
        kept: arguments that methods need.
    """

    name: str
    drafts: tuple[ClassDraft, ...]
    arguments: tuple[Argument, ...]
    names: dict[int, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()

    def instance(self, at: int) -> Call:
        """Return what constructs the module of a draft."""
        args: list[Arg] = []
        for place, argument in enumerate(self.arguments):
            by_place = place < 2 and argument.default is MISSING and argument.kind == "channels"
            by_place = by_place and not any(arg.name for arg in args)
            hole = Hole(argument.values[at], argument.kind, argument.name, self.drafts[at].path.rpartition(".")[2])
            args.append(Arg("" if by_place else argument.name, hole, argument.default))
        return Call(Text(self.name), tuple(args))

    def comment(self, line: Line, at: int, method: int) -> str:
        """Return the shape of a line's value as a comment; "" where the modules differ too much in it."""
        dims = [draft.methods[method].lines[at].dims for draft in self.drafts]
        entry = [draft.methods[method].entry for draft in self.drafts]
        if not line.dims or len({len(d) for d in dims}) != 1:
            return ""
        words = [self._size([d[axis] for d in dims], axis, entry) for axis in range(len(line.dims))]
        return "" if "" in words else f"({', '.join(words)})" if len(words) > 1 else f"({words[0]},)"

    def _size(self, pairs: Sequence[tuple[int, int]], axis: int, entry: Sequence[Dims]) -> str:
        if len(set(pairs)) == 1:
            return size_text(pairs[0])
        values = tuple(one for one, _ in pairs)
        for argument in self.arguments:
            if argument.values == values:
                return argument.name
        if all(len(e) > axis for e in entry) and axis >= 2:
            before = [e[axis][0] for e in entry]
            name = "h" if axis == 2 else "w" if axis == 3 else ""
            if name and values == tuple(before):
                return name
            if name and len({b / v for b, v in zip(before, values, strict=True)}) == 1 and before[0] % values[0] == 0:
                return f"{name} / {before[0] // values[0]}"
        return ""


def size_text(pair: tuple[int, int]) -> str:
    """Return the size of an axis: a number, or n for the batch."""
    one, two = pair
    if one == two:
        return str(one)
    slope = two - one
    return ("n" if slope == 1 else f"{slope}n") if one == slope * SIZES[0] else "?"


def classes(parts: ModuleParts) -> tuple[Class, ...]:
    """Decide the classes of a network, from the innermost outwards; the last one is the network's."""
    waiting = [path for path, part in parts.known.items() if part.kind == "class"]
    heights = {path: parts.height(path) for path in waiting}
    found: list[Class] = []
    names: dict[str, tuple[str, ...]] = {}
    for height in sorted(set(heights.values())):
        groups: dict[tuple[object, ...], list[ClassDraft]] = {}
        for path in (p for p in waiting if heights[p] == height):
            draft = parts.draft(path)
            groups.setdefault((path == "", draft.key), []).append(draft)
        for drafts in sorted(groups.values(), key=lambda group: len(group[0].children)):
            made = _class(_class_name(drafts[0], names), drafts)
            found.append(made)
            for at, draft in enumerate(drafts):
                parts.known[draft.path].expr = made.instance(at)
    return tuple(found)


def _class_name(draft: ClassDraft, names: dict[str, tuple[str, ...]]) -> str:
    hint = draft.hint if is_free(draft.hint) else "Net"
    name = hint
    if name in names:
        extra = [child for child in draft.children if child not in names[hint]]
        if 1 <= len(extra) <= 2 and all(is_free(e) for e in extra):
            name = hint + "With" + "And".join("".join(w.capitalize() for w in e.split("_")) for e in extra)
        number = 2
        while name in names:
            name, number = f"{hint}{number}", number + 1
    names[name] = draft.children
    return name


def _class(name: str, drafts: Sequence[ClassDraft]) -> Class:
    columns = [draft.holes() for draft in drafts]
    first = columns[0]
    vectors = [tuple(column[i].value for column in columns) for i in range(len(first))]
    varying = [i for i, vec in enumerate(vectors) if any(type(v) is not type(vec[0]) or v != vec[0] for v in vec)]
    merged: dict[tuple[object, ...], list[int]] = {}
    for i in varying:
        kind = "channels" if first[i].kind in _CHANNEL_LIKE else first[i].kind
        merged.setdefault((kind, tuple(map(repr, vectors[i]))), []).append(i)
    free, derived = _derived([(str(key[0]), places) for key, places in merged.items()], vectors)
    arguments = _named(free, first, vectors, {name for name, _ in drafts[0].attributes})
    names, kept = _expressions(arguments, derived, first, len(drafts[0].built_with()))
    order = {name: place for place, name in enumerate(_ORDER)}
    ordered = sorted((a for a, _ in arguments), key=lambda a: (a.default is not MISSING, order.get(a.name, len(order))))
    return Class(name, tuple(drafts), tuple(ordered), names, kept)


Group = tuple[str, list[int]]


def _derived(
    groups: Sequence[Group], vectors: Sequence[tuple[Any, ...]]
) -> tuple[list[Group], list[tuple[list[int], int, str]]]:
    """Split off groups that are a multiple or a part of an earlier one: (places, place of the other, expression)."""
    free: list[Group] = []
    derived: list[tuple[list[int], int, str]] = []
    for kind, places in groups:
        other = next(((p[0], e) for k, p in free if (e := _relation(kind, vectors[places[0]], k, vectors[p[0]]))), None)
        if other is None:
            free.append((kind, places))
        else:
            derived.append((places, *other))
    return free, derived


def _relation(kind: str, values: tuple[Any, ...], other: str, base: tuple[Any, ...]) -> str:
    """Return how values follow from those of an earlier argument, with ``{}`` in its place; "" if they do not."""
    if not all(type(v) is int for v in (*values, *base)):
        return ""
    pairs = list(zip(values, base, strict=True))
    if (kind, other) == ("padding", "kernel_size") and all(v == b // 2 for v, b in pairs):
        return "{} // 2"
    if (kind, other) != ("channels", "channels") or len({*values}) < 3:
        return ""
    for factor in _FACTORS:
        if all(v == factor * b for v, b in pairs):
            return f"{factor} * {{}}"
        if all(v * factor == b for v, b in pairs):
            return f"{{}} // {factor}"
    return ""


def _named(
    groups: Sequence[Group], first: Sequence[Hole], vectors: Sequence[tuple[Any, ...]], taken: set[str]
) -> list[tuple[Argument, list[int]]]:
    channels = [i for i, hole in enumerate(first) if hole.name in ("in_channels", "in_features", "num_features")]
    outs = [i for i, hole in enumerate(first) if hole.name in ("out_channels", "out_features")]
    used = set(taken)
    result = []
    for kind, places in groups:
        wanted = _wanted(kind, places, first, channels[:1], outs[-1:])
        name = _unused(wanted, first[places[0]], used)
        used.add(name)
        values = vectors[places[0]]
        kind = "groups" if name == "groups" else kind  # most have one group: that is the default
        usual, count = Counter(values).most_common(1)[0]
        default = usual if kind not in ("channels", "depth") and 2 * count >= len(values) else MISSING
        result.append((Argument(name, values, kind, default), places))
    return result


def _wanted(
    kind: str, places: Sequence[int], first: Sequence[Hole], entry: Sequence[int], leaving: Sequence[int]
) -> str:
    enters, leaves = bool({*entry} & {*places}), bool({*leaving} & {*places})
    names = [first[i].name for i in places]
    if enters and (leaves or all(n in ("num_features", "channels") for n in names)):
        return "channels"
    if enters:
        return "in_channels" if "in_channels" in names else names[0]
    if leaves:
        return "out_channels" if "out_channels" in names else "out_features"
    if kind == "channels":
        return next((n for n in names if n not in ("in_channels", "out_channels", "num_features")), "mid_channels")
    return names[0]


def _unused(wanted: str, hole: Hole, used: set[str]) -> str:
    wanted = wanted if is_free(wanted) else "value"
    owner = re.sub(r"\W", "_", hole.owner)
    number = 2
    name = wanted
    if name in used and is_free(f"{owner}_{wanted}"):
        name = f"{owner}_{wanted}"
    while name in used:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _expressions(
    arguments: Sequence[tuple[Argument, list[int]]],
    derived: Sequence[tuple[list[int], int, str]],
    first: Sequence[Hole],
    built: int,
) -> tuple[dict[int, str], tuple[str, ...]]:
    names: dict[int, str] = {}
    kept: dict[str, None] = {}
    texts = {place: (argument.name, "{}") for argument, places in arguments for place in places}
    for places, base, form in derived:
        texts.update(dict.fromkeys(places, (texts[base][0], form)))
    for place, (name, form) in texts.items():
        in_method = place >= built
        if in_method:
            kept[name] = None
        names[id(first[place])] = form.format(f"self.{name}" if in_method else name)
    return names, tuple(kept)
