"""What a plan file says, checked before anything is built from it: plans are edited by hand and sent around."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from convwright.architecture.reading import MOST_INPUT
from convwright.edits.edit import EDITS, Edit, edit_from_dict
from convwright.errors import EditError
from convwright.strict_json import check_version, parse

MOST_BYTES = 10_000_000
_DEEPEST = 8  # lists in lists and objects in objects
_LARGEST = 10_000_000  # of any number within an edit
_WIDEST_INPUT = 65_536
_LONGEST = 1_000  # characters of a name
_NUMBER = "a whole number"
# Options that load something: a plan says how a network is built, not where its weights come from.
_LOADING = frozenset({
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir",
    "weights", "weights_backbone",
})  # fmt: skip


def text_of(path: Path) -> str:
    """Read a plan file.

    Raises:
        EditError: if it is missing, no text, or larger than a plan can be.
    """
    try:
        with path.open("rb") as file:  # not by the size that it says to have: /dev/zero has none, and no end
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise EditError(f"the plan {path} cannot be read: it has more than {MOST_BYTES:,} bytes.")
        return content.decode()
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not text"
        raise EditError(f"the plan {path} cannot be read: {reason}.") from error


def values_of(text: str, origin: str) -> object:
    """Parse JSON that may come from anywhere.

    Raises:
        EditError: if it is no JSON, too long, nested too deeply, or has numbers that are none.
    """
    if len(text) > MOST_BYTES:
        raise EditError(f"{origin} is no plan: it has more than {MOST_BYTES:,} characters.")
    try:
        values = parse(text)
    except ValueError as error:
        raise EditError(f"{origin} is not JSON: {error}.") from error
    if _depth(values) > _DEEPEST:
        raise EditError(f"{origin} is damaged: its values are nested more than {_DEEPEST} deep.")
    return values


def _depth(values: object) -> int:
    """Return how deep lists and objects are nested; deeper than allowed is not walked to its end."""
    level, depth = [values], 0
    while level and depth <= _DEEPEST:
        containers = [v for v in level if isinstance(v, list | dict)]
        if not containers:
            return depth
        level = [v for c in containers for v in (c.values() if isinstance(c, dict) else c)]
        depth += 1
    return depth


def check_head(values: Mapping[str, Any], version: int, origin: str) -> None:
    """Refuse a plan of another version, or one whose head holds values of another kind.

    Raises:
        EditError: Says which.
    """
    try:
        check_version(values, version)
    except ValueError as error:
        raise EditError(f"{origin}: {error}.") from error
    for name, what, kind in (("model", "a name", str), ("params", _NUMBER, int), ("macs", _NUMBER, int)):
        if name in values and type(values[name]) is not kind:
            raise EditError(f"{origin} is damaged: {name!r} must be {what}, not {_brief(values[name])}.")


def edits_of(values: object, origin: str) -> tuple[Edit, ...]:
    """Return the edits of a plan.

    Raises:
        EditError: if one is unknown, incomplete, or has a field of another type; it is named by its number.
    """
    if not isinstance(values, list):
        raise EditError(f"{origin} is damaged: 'edits' must be a list, not {_brief(values)}.")
    found = []
    for number, each in enumerate(values, start=1):
        try:
            found.append(_edit(each))
        except EditError as error:
            raise EditError(f"{origin}, {called(number, each)}: {error}") from error
    return tuple(found)


def called(number: int, edit: Edit | object) -> str:
    """Name an edit of a plan for a person: ``edit 3 (width of layer1.0.conv1)``."""
    values = edit.to_dict() if isinstance(edit, Edit) else edit if isinstance(edit, dict) else {}
    kind, target = str(values.get("edit", "")).replace("_", " "), values.get("target")
    what = f"{kind} of {target}" if kind and target else kind
    return f"edit {number} ({what[:_LONGEST]})" if what else f"edit {number}"


def _edit(values: object) -> Edit:
    if not isinstance(values, dict):
        raise EditError(f"it must be an object such as {{'edit': 'width', ...}}, not {_brief(values)}.")
    for name, value in values.items():
        _check_amounts(name, value)
    edit = edit_from_dict(values)
    given = EDITS[edit.kind][0]
    annotations = {item.name: str(item.type) for item in dataclasses.fields(given)}
    for name, value in values.items():
        what, kind = _FIELDS.get(annotations.get(name, ""), ("", object))
        if name != "edit" and not fits(kind, value):
            raise EditError(f"its {name!r} must be {what}, not {_brief(value)}.")
    return edit


def _check_amounts(name: str, value: object) -> None:
    if isinstance(value, str) and len(value) > _LONGEST:
        raise EditError(f"its {name!r} has more than {_LONGEST} characters.")
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        raise EditError(f"its {name!r} has the number {_brief(value)}; {_LARGEST:,} is the largest.")
    for part in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _check_amounts(name, part)


def fits(kind: Any, value: object) -> bool:
    """Return whether a value is of a type as it stands: no text for a number, no NaN or infinity."""
    try:
        TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


_Numbers = int | list[int]
# Annotation of a field -> what it must be, in words and as a type. Fields of other types are checked by their edit.
_FIELDS: dict[str, tuple[str, Any]] = {
    "str": ("a name", Annotated[str, Field(min_length=1)]),
    "int": (_NUMBER, int),
    "bool": ("true or false", bool),
    "int | Sequence[int]": ("a whole number or a list of them", _Numbers),
    "Mapping[str, Sequence[int]] | None": ("lists of whole numbers by name", dict[str, list[int]] | None),
    "Mapping[str, int | list[int]] | None": ("whole numbers, or lists of them, by name", dict[str, _Numbers] | None),
}
_SHAPE = Annotated[list[Annotated[int, Field(ge=1, le=_WIDEST_INPUT)]], Field(min_length=1, max_length=6)]


def shape_from(values: object, origin: str) -> tuple[int, ...]:
    """Return the shape of an example input.

    Raises:
        EditError: if it is none, or of a size that no image has.
    """
    sizes = values if isinstance(values, list) and fits(_SHAPE, values) else []
    if not sizes or math.prod(sizes) > MOST_INPUT:
        raise EditError(f"{origin} is damaged: 'input_shape' is no shape of an image: {_brief(values)}.")
    return tuple(sizes)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor options that a plan can hold: plain values that load nothing."""
    plain = {name: value for name, value in options.items() if name not in _LOADING and _is_plain(value)}
    return dict(json.loads(json.dumps(plain)))  # lists for tuples


def options_from(values: object, origin: str) -> dict[str, Any]:
    """Return a plan's constructor options.

    Raises:
        EditError: if they are no object, or one of them loads weights or names a file.
    """
    if not isinstance(values, dict):
        raise EditError(f"{origin} is damaged: 'options' must be an object, not {_brief(values)}.")
    loading = next((name for name in values if name in _LOADING), None)
    if loading is not None:
        raise EditError(f"{origin} has the option {loading!r}: a plan builds a network, it does not load weights.")
    for name, value in values.items():
        _check_amounts(name, value)
    return values


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _brief(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
