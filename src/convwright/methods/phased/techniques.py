"""The techniques that the phased design tries at its end, as plain data, and the edits of those that are edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.edits import Edit, Replace
from convwright.edits.operators import OPERATORS
from convwright.errors import ConvwrightError, did_you_mean
from convwright.methods.phased.moves import Scene, accepted


@dataclass(frozen=True)
class Trying:
    """A technique to try: a change of the recipe, or an operator that takes the place of layers.

    Attributes:
        name: What it is called in the log.
        recipe: Changes, as in `Candidate.recipe`.
        operator: A name from the operator registry: ``blurpool`` takes the place of pools (of strided convolutions
            where there are none), any other that of the last norm or convolution of each stage.
        options: Of the operator.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    operator: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def default_techniques(arch: Architecture) -> tuple[Trying, ...]:
    """Return the paper's techniques, but one-cycle rates, which are the schedule of most recipes already.

    Mixup's alpha is 0.2, not the 0.5 with which the authors' small network lost accuracy; cutout's square has a
    quarter of the image's side (they took 10 pixels of 28).
    """
    side = max(1, min(arch.example_input.shape[2:]) // 4)
    return (
        Trying("blurpool", operator="blurpool"),
        Trying("squeeze_excite", operator="squeeze_excite"),
        Trying("label_smoothing", {"label_smoothing": 0.1}),
        Trying("mixup", {"techniques": {"mixup": {"alpha": 0.2}}}),
        Trying("cutout", {"cutout": side}),
        Trying("swa", {"techniques": {"swa": {}}}),
        Trying("sam", {"techniques": {"sam": {"rho": 0.05}}}),
    )


def techniques_named(arch: Architecture, given: str | Sequence[str | Trying]) -> tuple[Trying, ...]:
    """Return what is to be tried: names are those of `default_techniques`.

    Args:
        arch: The network.
        given: Names, or ``"mixup,sam"``, or techniques as they are.

    Raises:
        ConvwrightError: A name is unknown.

    Examples:
        >>> import convwright as cw
        >>> [tried.name for tried in techniques_named(cw.read("zoo:mnist-a"), "mixup, sam")]
        ['mixup', 'sam']
    """
    named = given.split(",") if isinstance(given, str) else given
    known = {tried.name: tried for tried in default_techniques(arch)}
    found: list[Trying] = []
    for each in named:
        name = each.strip() if isinstance(each, str) else each.name
        if isinstance(each, str) and name not in known:
            hint = did_you_mean(name, known)
            raise ConvwrightError(f"techniques: {name!r} is unknown; give some of {', '.join(known)}.{hint}")
        found.append(known[name] if isinstance(each, str) else each)
    return tuple(found)


def joined(recipes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join changes of a recipe; techniques are gathered, of one field the last value holds."""
    together: dict[str, Any] = {}
    techniques: dict[str, Any] = {}
    for recipe in recipes:
        together |= recipe
        techniques |= recipe.get("techniques", {})
    return {**together, "techniques": techniques} if techniques else together


def tried_on(scene: Scene, tried: Trying) -> tuple[tuple[Edit, ...], Scene | None]:
    """Return a technique's edits and the network after them; no network where it finds no layer to change."""
    names = _replaced(scene.arch, tried.operator) if tried.operator in OPERATORS else ()
    wanted = [Replace(name, tried.operator, **tried.options) for name in names]
    edits = tuple(edit for edit in wanted if accepted(scene, edit))
    if tried.operator and not edits:
        return (), None
    return edits, scene.tried(edits)


def _replaced(arch: Architecture, operator: str) -> list[str]:
    """Return whose place an operator takes: what sub-samples, or the last norm, else convolution, of each stage."""
    modules = dict(arch.model.named_modules())
    if operator != "blurpool":
        found: list[str] = []
        for stage in arch.stages:
            kinds = (nn.BatchNorm2d, nn.Conv2d)
            norms, convs = ([n for n in stage.layers if isinstance(modules.get(n), kind)] for kind in kinds)
            found += (norms or convs)[-1:]
        return found
    called = {layer.name: modules[layer.name] for layer in arch.layers if layer.name in modules}
    pools = [name for name, module in called.items() if isinstance(module, nn.MaxPool2d | nn.AvgPool2d)]
    return pools or [n for n, module in called.items() if isinstance(module, nn.Conv2d) and max(module.stride) > 1]
