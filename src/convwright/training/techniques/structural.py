"""What techniques that edit the network share: sites that are tried, and those that an operator refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError
from torch import nn

from convwright.architecture import Architecture, Layer, read
from convwright.architecture.reading import InputLike
from convwright.edits import Edit, Replace
from convwright.edits.replace import why_not_replaceable
from convwright.errors import RecipeError
from convwright.training.techniques.technique import Technique, TechniqueContext

_Kind = TypeVar("_Kind", bound=Technique)
_Module = TypeVar("_Module", bound=nn.Module)


class Structural(Technique):
    """Options of a technique that puts other operators in the place of layers."""

    changes_network: ClassVar[bool] = True
    nothing: ClassVar[str] = "the network has no layer that it could change"

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield replacements to try, and layers or blocks that are left alone with the reason."""
        raise NotImplementedError

    def sites(self, arch: Architecture) -> tuple[tuple[Replace, ...], dict[str, str]]:
        """Return the replacements that can be made, and the layers or blocks that are skipped, with the reasons."""
        edits: list[Replace] = []
        skipped: dict[str, str] = {}
        for found in self.candidates(arch):
            if isinstance(found, tuple):
                skipped[found[0]] = found[1]
            elif (reason := why_not_replaceable(arch, found)) is not None:
                skipped[found.target] = reason
            else:
                edits.append(found)
        return tuple(edits), skipped

    def edits(self, arch: Architecture) -> tuple[Edit, ...]:
        """Return the replacements that can be made; see `sites` for the others."""
        return self.sites(arch)[0]

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn where the network stays as it is."""
        edits, skipped = self.sites(setting.arch)
        if edits:
            return ()
        reason = next((f"{name}: {why}" for name, why in skipped.items()), self.nothing)
        return (f"techniques.{self.name} has no effect: {reason}",)

    def applied(self, network: Architecture | nn.Module | str, example_input: InputLike = None) -> Architecture:
        """Return the changed network; what was given stays as it was."""
        arch = as_architecture(network, example_input)
        return arch.apply(*self.edits(arch))


def applied_by(kind: type[Structural], what: str) -> Callable[..., Architecture]:
    """Return a technique as a function for one's own loop, with the options of the technique as keyword arguments.

    Args:
        kind: The options; what their class says of each is said of the arguments.
        what: What the network is that the function returns.
    """

    def applied(
        network: Architecture | nn.Module | str, example_input: InputLike = None, **options: Any
    ) -> Architecture:
        return options_of(kind, **options).applied(network, example_input)

    lines = (
        f"Return a network {what}; what was given stays as it was.\n",
        "Args:",
        "    network: An `Architecture`, or what `read` takes.",
        "    example_input: As for `read`, where `network` has not been read.",
        inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\nExamples:")[0],
        "Returns:\n    The changed network as `.model`; unchanged where nothing of it can be replaced.",
    )
    first = [*inspect.signature(applied).parameters.values()][:2]
    given = [each.replace(kind=each.KEYWORD_ONLY) for each in inspect.signature(kind).parameters.values()]
    applied.__signature__ = inspect.Signature([*first, *given])  # type: ignore[attr-defined]
    applied.__name__ = applied.__qualname__ = kind.name
    applied.__module__, applied.__doc__ = kind.__module__, "\n".join(lines)
    return applied


def as_architecture(network: Architecture | nn.Module | str, example_input: InputLike = None) -> Architecture:
    """Return a network that was read, or read it."""
    return network if isinstance(network, Architecture) else read(network, example_input)


def options_of(kind: type[_Kind], **values: Any) -> _Kind:
    """Return checked options of a technique.

    Raises:
        RecipeError: One is out of its range; one line.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        item = error.errors()[0]
        option = ".".join(str(part) for part in item["loc"])
        raise RecipeError(f"{kind.name}: {option}={item['input']!r}: {item['msg']}") from error


def modules_called(arch: Architecture, kind: type[_Module]) -> Iterator[tuple[Layer, _Module]]:
    """Yield the layers that are modules of a class, in execution order, each module once."""
    modules = dict(arch.model.named_modules())
    for layer in arch.layers:
        module = modules.get(layer.name)
        if isinstance(module, kind):
            yield layer, module
