"""Which rows an ablation has: pure planning, from the names of techniques to recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import yaml

from convwright.errors import RecipeError
from convwright.training import Recipe
from convwright.training.techniques import TECHNIQUES, Entry, technique_named

CONTROL = "control"
TOGETHER = "all together"
_KEPT = {"schedule", "optimizer", "lr", "epochs"}  # fields of the recipe that all rows share, unless asked for


@dataclass(frozen=True)
class Chosen:
    """A technique as it was asked for.

    Attributes:
        name: In the registry.
        options: Those given; the others are the recipe's own where it has the technique on, else the defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the name with the options, as it is written on the command line."""
        listed = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({listed})" if listed else self.name


@dataclass(frozen=True)
class PlannedRow:
    """One row.

    Attributes:
        name: ``control``, the technique, ``a + b``, or ``all together``.
        techniques: What is switched on.
        recipe: How it is trained; None where it cannot be.
        reason: Why it cannot be.
    """

    name: str
    techniques: tuple[Chosen, ...]
    recipe: Recipe | None
    reason: str = ""


@dataclass(frozen=True)
class AblationPlan:
    """The rows, the control first, and the techniques of the given recipe that are off in it."""

    rows: tuple[PlannedRow, ...]
    switched_off: tuple[str, ...]


def plan_ablation(
    recipe: Recipe, techniques: str | Sequence[str], *, all_pairs: bool = False, together: bool = False
) -> AblationPlan:
    """Plan the rows: the control, every technique alone, pairs and all together if asked for.

    Args:
        recipe: Optimizer, schedule, epochs and augmentation of all rows. Techniques that are on in it are off in
            the control; where they are among `techniques`, they keep the options that they have in it.
        techniques: ``"mixup,sam(rho=0.1)"``, or the same in parts.
        all_pairs: Add every pair.
        together: Add all techniques at once.

    Raises:
        RecipeError: No technique, an unknown one, one twice, or options that it does not have.
    """
    chosen = parse_techniques(techniques)
    control, off = _without(recipe, {technique.name for technique in chosen})
    rows = [PlannedRow(CONTROL, (), control)]
    for technique in chosen:
        made = _on(control, recipe, technique)
        same = next((other.name for other in rows if other.recipe == made), None)
        if same is not None:
            what = (
                "changes nothing" if same == CONTROL else "given twice" if same == str(technique) else f"equals {same}"
            )
            raise RecipeError(f"technique {technique}: {what}; leave it out")
        rows.append(PlannedRow(str(technique), (technique,), made))
    combined: list[tuple[str, tuple[Chosen, ...]]]
    combined = [(" + ".join(map(str, pair)), pair) for pair in combinations(chosen, 2) if all_pairs]
    combined += [(TOGETHER, tuple(chosen))] if together else []
    for name, parts in combined:
        rows.append(_combined(name, parts, control, recipe, rows))
    return AblationPlan(tuple(rows), off)


# ------------------------------------------------------------------ what was written


def parse_techniques(text: str | Sequence[str]) -> tuple[Chosen, ...]:
    """Read ``"mixup,sam(rho=0.1)"``.

    Raises:
        RecipeError: It is empty, cannot be read, or names an unknown technique.
    """
    parts = _split(text if isinstance(text, str) else ",".join(text))
    chosen = tuple(_parsed(part) for part in parts if part)
    if not chosen:
        raise RecipeError(f"no technique is given; name one or several of {', '.join(sorted(TECHNIQUES))}")
    return chosen


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _parsed(text: str) -> Chosen:
    match = re.fullmatch(r"([\w-]+)\s*(?:\((.*)\))?", text)
    if match is None:
        raise RecipeError(f"{text!r} is no technique; write a name, or name(option=value,option=value)")
    technique_named(match[1])
    return Chosen(match[1], dict(_option(part, text) for part in _split(match[2] or "") if part))


def _option(part: str, text: str) -> tuple[str, Any]:
    name, equals, value = (piece.strip() for piece in part.partition("="))
    try:
        if equals and name:
            return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    raise RecipeError(f"{text!r}: {part!r} is no option; write option=value, such as mixup(alpha=0.4)")


# ------------------------------------------------------------------ recipes


def _without(recipe: Recipe, named: set[str]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe without techniques, and the names of those that were on."""
    off = []
    for entry in TECHNIQUES.values():
        if entry.name not in named and _KEPT & set(entry.fields):
            continue  # "the same schedule" is not "no schedule"
        if is_on(entry, recipe):
            off.append(entry.name)
            recipe = entry.switched(recipe, on=False)
    return recipe, tuple(off)


def is_on(entry: Entry, recipe: Recipe) -> bool:
    """Say whether a recipe uses a technique."""
    if entry.kind is not None:
        return entry.name in recipe.techniques
    # A field that holds a name, such as the schedule, belongs to several techniques: it is on if the name is its own.
    names = {field: value for field, value in entry.fields.items() if isinstance(value, str)}
    own = all(getattr(recipe, field) == value for field, value in names.items())
    return own and entry.switched(recipe, on=False) != recipe


def _on(base: Recipe, given: Recipe, technique: Chosen) -> Recipe:
    entry = technique_named(technique.name)
    return entry.switched(base, **(technique.options or _own_options(entry, given)))


def _own_options(entry: Entry, given: Recipe) -> Mapping[str, Any]:
    """Return the options that a technique has in the given recipe; nothing where it is off there."""
    if not is_on(entry, given):
        return {}
    if entry.kind is not None:
        return given.techniques[entry.name].model_dump()
    return {name: getattr(given, name) for name in entry.fields}


def _combined(
    name: str, parts: Sequence[Chosen], control: Recipe, given: Recipe, rows: Sequence[PlannedRow]
) -> PlannedRow:
    """Return a row of several techniques; one that cannot be is kept with the reason."""
    names = [part.name for part in parts]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        return PlannedRow(name, tuple(parts), None, f"{twice} is in it twice")
    made = control
    try:
        for part in parts:
            made = _on(made, given, part)
    except RecipeError as error:
        return PlannedRow(name, tuple(parts), None, " ".join(str(error).split()))
    undone = next((part for part in parts if _on(made, given, part) != made), None)
    if undone is not None:
        return PlannedRow(name, tuple(parts), None, f"{undone} is undone by the others: they set the same field")
    same = next((row.name for row in rows if row.recipe == made), None)
    return PlannedRow(name, tuple(parts), None, f"the same as {same}") if same else PlannedRow(name, tuple(parts), made)


def folder_names(rows: Sequence[PlannedRow]) -> Iterator[str]:
    """Yield one name per row that every file system takes."""
    used: set[str] = set()
    for row in rows:
        plain = re.sub(r"[^A-Za-z0-9._=]+", "-", row.name).strip("-.")
        name, number = plain, 2
        while name.lower() in used:
            name, number = f"{plain}-{number}", number + 1
        used.add(name.lower())
        yield name
