"""JSON as it is written here: no name twice in an object, no number that is none, no other version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse(text: str) -> Any:
    """Return the values of a JSON text.

    Raises:
        ValueError: It is no JSON, is nested too deeply, names something twice in one object, or has NaN or an infinity.

    Examples:
        >>> parse('{"seed": 1, "seed": 2}')
        Traceback (most recent call last):
        ValueError: 'seed' stands twice in one object
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_version(values: Mapping[str, Any], known: int) -> None:
    """Refuse what another version wrote; what says nothing is of the known one.

    Raises:
        ValueError: Says which versions.
    """
    found = values.get("version", known)
    if isinstance(found, bool) or found != known:
        raise ValueError(f"it has version {json.dumps(found)}, and this convwright reads version {known}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:100]!r} stands twice in one object")
    return values


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
