"""The exceptions that convwright raises on purpose, and checks of counts and names.

Each message names the layer or file, says what was wrong, and says what to do. The command line prints
it in one line and exits with code 2.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

_Found = TypeVar("_Found")


class ConvwrightError(Exception):
    """Base class of every error that convwright raises on purpose."""


class ReadError(ConvwrightError):
    """The network could not be read: unknown name, wrong input, or not capturable."""


class EditError(ConvwrightError):
    """An edit or a plan was refused; nothing was changed."""


class BudgetError(ConvwrightError):
    """A budget does not parse, cannot be met, or was not met."""


class DataError(ConvwrightError):
    """A data set could not be found, read, or does not fit the network."""


class DataWarning(UserWarning):
    """Something beside the data is not used."""


class RecipeError(ConvwrightError):
    """A training recipe is invalid, or training with it broke down."""


class RecipeWarning(UserWarning):
    """A setting of a recipe has no effect, or probably not the one that is meant."""


class RunError(ConvwrightError):
    """A run directory is damaged, in use by another process, or does not match the command."""


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Refuse options that are no whole numbers from a least one on.

    Args:
        least: The smallest that is allowed.
        counts: Values by the name of their option.

    Raises:
        ConvwrightError: Names the option.

    Examples:
        >>> check_counts(2, eta=3, points=4)
        >>> check_counts(rounds=True)
        Traceback (most recent call last):
        convwright.errors.ConvwrightError: rounds=True must be a whole number from 1 on
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConvwrightError(f"{name}={value!r} must be a whole number from {least} on")
        if value >= 2**63:
            raise ConvwrightError(f"{name}={brief(value)} is larger than any number that torch takes")


def check_given_counts(least: int = 1, /, **counts: object) -> None:
    """Refuse as `check_counts` does; None is an option that was not given."""
    check_counts(least, **{name: value for name, value in counts.items() if value is not None})


def is_there(path: str | Path, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether there is a file (or `Path.is_dir`) at a path that a person wrote; no path may be so long.

    Examples:
        >>> is_there("x" * 10_000)
        False
    """
    try:
        return kind(Path(path))
    except (OSError, ValueError):
        return False


class _Brief(reprlib.Repr):
    """Writes values as `repr` does, and of large ones a part: what a person gave may be of any size and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 200, 200, 60
        self.maxlist = self.maxtuple = self.maxdict = 8


brief = _Brief().repr


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 edit``, ``12 edits``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """Return the first line of what an error says; where it says nothing, something else or the error's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__ if otherwise is None else otherwise


def whole_number(text: str) -> int | None:
    """Return the whole number from 0 on that a person wrote in ASCII digits; None for any other text.

    More than 18 digits are none: no count is that large, and Python itself refuses to read thousands of them.

    Examples:
        >>> whole_number(" 12 "), whole_number("-1"), whole_number("\u00b2"), whole_number("9" * 5000)
        (12, None, None, None)
    """
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


def look_up(name: str, known: Mapping[str, _Found], what: str, error: type[ConvwrightError]) -> _Found:
    """Return what is registered under a name.

    Args:
        name: As a person wrote it.
        known: The registry.
        what: What its entries are called, e.g. ``"technique"``.
        error: Raised if there is none of that name; it lists the nearest ones, and all.
    """
    if name not in known:
        raise error(f"unknown {what} {name!r}.{did_you_mean(name, known)} Give one of {', '.join(sorted(known))}")
    return known[name]


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return `` Did you mean a, b?`` for the nearest known names, or an empty string."""
    nearest = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(nearest)}?" if nearest else ""
