"""Presets: recipes that come with the package, one YAML file each.

The file's name is the preset's, its first comment line says what it is for. A new preset is a new file here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from convwright.errors import RecipeError, did_you_mean
from convwright.training.recipe.recipe_file import read_fields

_FOLDER = Path(__file__).parent
_FIRST = "default"


def names() -> tuple[str, ...]:
    """Return the presets' names, `default` first."""
    found = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return (_FIRST, *(name for name in found if name != _FIRST))


def about(name: str) -> str:
    """Return the line that says what a preset is for.

    Raises:
        RecipeError: There is none of that name.
    """
    return notes(name)[0]


def notes(name: str) -> tuple[str, ...]:
    """Return the comment that a preset's file begins with, line by line: its purpose, and what is not as in a paper.

    Raises:
        RecipeError: There is none of that name.
    """
    lines = _file(name).read_text(encoding="utf-8").splitlines()
    last = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return tuple(line.lstrip("# ") for line in lines[:last]) or ("",)


@cache
def fields(name: str) -> Mapping[str, Any]:
    """Return the fields that a preset names.

    Raises:
        RecipeError: There is none of that name; the nearest ones are listed.
    """
    return read_fields(_file(name))


def _file(name: str) -> Path:
    if name not in names():
        raise RecipeError(
            f"unknown recipe {name!r}.{did_you_mean(name, names())} Give one of {', '.join(names())}, or a .yaml file"
        )
    return _FOLDER / f"{name}.yaml"
