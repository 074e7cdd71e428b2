"""``convwright recipe``: show presets and recipe files, and check them without training."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from convwright.errors import RecipeError
from convwright.runs.load import Shape, load_model_and_data
from convwright.tables import add_row, new_table
from convwright.training import Recipe, presets
from convwright.training.data.normalisation import normalised
from convwright.training.preflight import prepare
from convwright.training.recipe.check_recipe import check_alone
from convwright.training.recipe.recipe import as_recipe
from convwright.training.recipe.recipe_file import is_file_name
from convwright.training.techniques import TECHNIQUES, Entry, Teacher


@dataclass(frozen=True)
class CheckedRecipe:
    """What `validate` found.

    Attributes:
        recipe: The recipe.
        against: The network and the data that it was checked with; "" for none.
        warnings: Settings that have no effect, or work against each other; one line each.
    """

    recipe: Recipe
    against: str
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        values = {"against": self.against or None, "warnings": list(self.warnings)}
        return {"valid": True, **values, "recipe": self.recipe.model_dump(mode="json")}


def listed() -> list[dict[str, str]]:
    """Return every preset's name and purpose."""
    return [{"name": name, "about": presets.about(name)} for name in presets.names()]


def as_dict(recipe: Recipe | None, techniques: bool = False) -> dict[str, Any]:
    """Return a recipe as plain data, or the presets for None; `techniques` adds their cards."""
    content: dict[str, Any] = {"presets": listed()} if recipe is None else {"recipe": recipe.model_dump(mode="json")}
    return {**content, "techniques": cards(recipe)} if techniques else content


def cards(recipe: Recipe | None = None) -> list[dict[str, Any]]:
    """Return every technique's card; with a recipe, also what it says about each.

    Args:
        recipe: ``setting`` is its options there, "off", or "on" for a field of the recipe; None: no such key.
    """
    found = []
    for name in sorted(TECHNIQUES):
        entry = TECHNIQUES[name]
        shown = {} if recipe is None else {"setting": setting_of(entry, recipe)}
        found.append({"name": name, "switch": switch_of(entry), **shown, **asdict(entry.card)})
    return found


def switch_of(entry: Entry) -> str:
    """Return what turns a technique on, as YAML."""
    if entry.kind is None:
        return ", ".join(f"{key}: {_short(value)}" for key, value in entry.fields.items() if value != {})
    return f"techniques: {{{entry.name}: {{}}}}"


def setting_of(entry: Entry, recipe: Recipe) -> str:
    """Return what a recipe says about a technique: "off", or the options or fields that turn it on."""
    if entry.kind is not None:
        options = recipe.techniques.get(entry.name)
        return "off" if options is None else _pairs(options.model_dump()) or "on"
    first, value = next(iter(entry.fields.items()))
    now = getattr(recipe, first)
    # A name is on where it is that name; a number where it is not the one that means off.
    on = now == value if isinstance(value, str) else now != entry.off.get(first)
    return _pairs({key: getattr(recipe, key) for key in entry.fields}) if on else "off"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_short(value)}" for key, value in values.items() if value != {})


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + _pairs(value) + "}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def yaml_text(name: str) -> str:
    """Return a preset or a file as complete YAML, ready to be edited; a preset's notes stand above it.

    Raises:
        RecipeError: Unknown preset or bad file.
    """
    recipe = as_recipe(name)
    notes = () if is_file_name(name) else presets.notes(name)
    return "".join(f"# {line}\n" for line in notes if line) + recipe.to_yaml()


def validate(
    file: Recipe | str | Path,
    data: Any = None,
    model: str | None = None,
    *,
    input_shape: str | Shape | None = None,
    data_dir: Path | None = None,
) -> CheckedRecipe:
    """Check a recipe; with data and a network, all that `train` would refuse before the first batch.

    Args:
        file: A recipe, a .yaml file, or a preset's name.
        data: As for `load_data`; None: only the recipe itself is checked.
        model: As for `read`; None as `data`.
        input_shape: Images are resized to it.
        data_dir: Where named data sets lie.

    Raises:
        ConvwrightError: What is wrong, in one line.
    """
    recipe = as_recipe(file)
    if (data is None) != (model is None):
        missing = "--model" if model is None else "--data"
        raise RecipeError(f"{missing} is missing; give both --data and --model, or neither")
    if model is None:
        return CheckedRecipe(recipe, "", check_alone(recipe))
    # Without validation images where the recipe wants none, as `train` opens them.
    opened = load_model_and_data(
        model, data, input_shape=input_shape, data_dir=data_dir, recipe=recipe, seed=recipe.seed, needs_val=False
    )
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # inexact edits are warned about when they are made for good
        data = normalised(opened.data, recipe.normalisation, opened.arch.model)
        found = prepare(opened.arch.model, data, recipe, Teacher(opened.arch.model)).warnings
    return CheckedRecipe(recipe, f"{opened.arch.source} and {opened.data.name}", tuple(dict.fromkeys(found)))


def preset_table() -> Table:
    """Return the presets, one line each."""
    table = new_table("Presets: `convwright recipe show NAME` prints one", "preset", "what it is")
    for preset in listed():
        add_row(table, preset["name"], preset["about"])
    return table


def card_table(recipe: Recipe | None = None) -> Table:
    """Return the techniques' cards; with a recipe, what it says about each."""
    table = new_table("Techniques", "technique", "what to know")
    table.show_lines = True
    for card in cards(recipe):
        here = [f"here: {card['setting']}"] if recipe else []
        lines = [card["does"], *(f"{key}: {card[key]}" for key in ("cost", "helps", "hurts", "source")), *here]
        name = Text(card["name"], style="bold")
        table.add_row(name, Text("\n".join([*lines, f"switch: {card['switch']}"])))
    return table
