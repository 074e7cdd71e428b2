"""``convwright recipe``: show and check training recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from convwright.cli import leaving
from convwright.cli.options import DataDir, Input, Json
from convwright.cli.paths import refuse_missing
from convwright.cli.printing import Commands, print_json, show

recipes = typer.Typer(
    cls=Commands,
    help="Show and check training recipes: `convwright recipe show` lists the presets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@recipes.command("show")
def recipe_show(
    name: Annotated[str | None, typer.Argument(help="A preset or a .yaml file; without it, all are listed.")] = None,
    techniques: Annotated[bool, typer.Option("--techniques", help="Also print the techniques' cards.")] = False,
    as_json: Json = False,
) -> None:
    """Print a recipe as complete YAML, ready to be edited; or list the presets."""
    refuse_missing(recipe=name)
    from convwright.diagnose import recipes as known
    from convwright.training.recipe.recipe import as_recipe

    recipe = None if name is None else as_recipe(name)
    if as_json:
        return print_json(known.as_dict(recipe, techniques))
    if name is not None:
        print(known.yaml_text(name), end="")
    elif not techniques:
        show(known.preset_table())
    return show(known.card_table(recipe)) if techniques else None


@recipes.command("validate")
def recipe_validate(
    file: Annotated[str, typer.Argument(help="A .yaml file, or a preset.")],
    data: Annotated[str | None, typer.Option(help="Check it with these data, too; needs --model.")] = None,
    model: Annotated[str | None, typer.Option(help="Check it with this network, too; needs --data.")] = None,
    input_shape: Input = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check a recipe; with --data and --model, all that training would refuse before its first batch."""
    refuse_missing(model, data, recipe=file, data_dir=data_dir)
    from convwright.diagnose.recipes import validate

    found = validate(file, data, model, input_shape=input_shape, data_dir=data_dir)
    if as_json:
        return print_json(found.as_dict())
    for line in found.warnings:
        leaving.say(f"warning: {line}")
    return print(f"{file}: valid" + (f" for {found.against}" if found.against else ""))
