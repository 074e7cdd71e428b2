"""Options of a search method, given by name: checked against what its maker takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from convwright.errors import ConvwrightError, did_you_mean
from convwright.methods import method_named

_GIVEN_OTHERWISE = ("epochs", "tune_epochs", "seed", "divisor")  # `optimize` has an option of its own for each


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts; a value that is JSON (a number, true, null) is that, any other is text.

    Raises:
        ConvwrightError: One has no name or no value, or comes twice.

    >>> parse_options(["trials=12", "mode=parity", "gamma=0.7"])
    {'trials': 12, 'mode': 'parity', 'gamma': 0.7}
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals and value):
            raise ConvwrightError(f"--option {text!r} is not NAME=VALUE, such as trials=12")
        if name in found:
            raise ConvwrightError(f"--option {name} is given twice; give it once")
        found[name] = _value(value)
    return found


def checked_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a method takes them.

    Args:
        method: Its name.
        given: Values by the names of its keyword arguments.

    Raises:
        ConvwrightError: The method is unknown, has no such option, or the value is of another kind.
    """
    known = options_of(method)
    found = {}
    for name, value in given.items():
        if name in _GIVEN_OTHERWISE:
            raise ConvwrightError(f"{name} is no option of a method; give {name} itself (--{name.replace('_', '-')})")
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConvwrightError(f"method {method} has no option {name!r}; {has}.{did_you_mean(name, known)}")
        found[name] = _checked(method, name, value, known[name])
    return found


def options_of(method: str) -> dict[str, Any]:
    """Return the options that a method takes beyond what every method takes, each with its annotation.

    Raises:
        ConvwrightError: There is no such method.
    """
    maker: Any = method_named(method)
    function = maker.__init__ if inspect.isclass(maker) else maker
    scope = getattr(function, "__globals__", {})
    named = inspect.signature(function).parameters.values()
    only = [p for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _GIVEN_OTHERWISE]
    return {p.name: _resolved(p.annotation, scope) for p in only}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _resolved(annotation: Any, scope: Mapping[str, Any]) -> Any:
    """Return an annotation that stands in the source as text; anything where its names are not there at run time."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, dict(scope))  # our own source, not a user's words
    except NameError:
        return Any


def _checked(method: str, name: str, value: Any, annotation: Any) -> Any:
    try:
        adapter = _adapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = "; ".join(dict.fromkeys(part["msg"] for part in error.errors()))
        raise ConvwrightError(f"option {name}={value!r} of method {method}: {reason}") from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True))
    except PydanticUserError:  # a dataclass: it has a configuration of its own
        return TypeAdapter(annotation)
