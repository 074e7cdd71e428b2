"""A candidate that runs out of memory is trained in smaller parts of its batches, and its evidence says so.

The mean over a batch stays what it was: parts change sums by rounding, and what batch normalisation sees at once.
"""

from __future__ import annotations

from pathlib import Path

from convwright.errors import RecipeError, RunError, first_line
from convwright.runs.directory.files import read_json, write_json
from convwright.training import Recipe
from convwright.training.checkpoint import FILE as CHECKPOINT

PROBE = "batch-parts"  # of the evidence: parts that each batch was computed in
MOST = 8  # parts more than the recipe has
_FILE = "memory.json"
_FORMAT = "convwright memory"


def parts_so_far(folder: Path) -> int:
    """Return the parts that an earlier process came to in a trial; 1 where it did not run out of memory."""
    path = folder / _FILE
    if not path.is_file():
        return 1
    try:
        return max(1, int(read_json(path, _FORMAT)["parts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: damaged; remove it, and the trial begins with whole batches") from error


def in_parts(recipe: Recipe, parts: int) -> Recipe:
    """Return a recipe whose batches are computed in so many times more parts."""
    return recipe.updated(accumulate=parts * recipe.accumulate) if parts > 1 else recipe


def smaller(folder: Path, recipe: Recipe, parts: int, error: BaseException) -> int:
    """Return into how many parts to split next, and note it before it is tried.

    Args:
        folder: Of the trial; the checkpoint of the last try is removed.
        recipe: With as many parts as before anything ran out.
        parts: With which memory ran out.
        error: What said so.

    Raises:
        RecipeError: Smaller parts than that are not tried.
    """
    reason = first_line(error)
    if 2 * parts > MOST or recipe.batch_size % (2 * parts * recipe.accumulate):  # a recipe's parts are equal
        raise RecipeError(f"out of memory, with batches of {recipe.batch_size} in {parts} parts: {reason}") from None
    (folder / CHECKPOINT).unlink(missing_ok=True)
    write_json(folder / _FILE, {"format": _FORMAT, "parts": 2 * parts, "reason": reason})
    return 2 * parts
