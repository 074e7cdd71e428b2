"""The step of `Auto` that is about the recipe: which techniques the best network is trained on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convwright.errors import EditError
from convwright.methods.phased.techniques import Trying, default_techniques, joined, tried_on
from convwright.methods.shared.halving import beats, ranking

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.edits import Edit
    from convwright.methods.auto.design_search import Runner

_SHARE = 4  # one in so many of the search's epochs is for the recipe
_LEAST = 3  # epochs of a training that is to tell what a technique is worth
_BESIDE = 2  # trainings beside those with a single technique: with none, and with those that gain
_ERRORS = 2.0  # standard errors by which a technique must gain: several are tried, and one would win by chance


def default_recipe(arch: Architecture) -> tuple[Trying, ...]:
    """Return what is tried: `default_techniques`, first those that change the recipe alone."""
    return tuple(sorted(default_techniques(arch), key=lambda tried: bool(tried.operator)))


def reserved(search_epochs: int, techniques: int) -> int:
    """Return how many of a search's epochs are kept for the recipe: none where they would not tell a technique's worth.

    Examples:
        >>> [reserved(epochs, 7) for epochs in (35, 36, 120)]
        [0, 9, 30]
    """
    share = search_epochs // _SHARE
    return share if techniques and share // _LEAST >= 1 + _BESIDE else 0


def recipe_course(share: int, techniques: int) -> tuple[int, int]:
    """Return how many techniques are tried, and for how many epochs each.

    Examples:
        >>> recipe_course(9, 7), recipe_course(30, 7), recipe_course(60, 7)
        ((1, 3), (7, 3), (7, 6))
    """
    count = min(techniques, share // _LEAST - _BESIDE)
    return count, share // (count + _BESIDE)


def with_techniques(present: Runner, techniques: Sequence[Trying]) -> tuple[tuple[Runner, ...], tuple[str, ...]]:
    """Return the best network with each technique; why some, whose operator finds no layer or room, cannot be tried."""
    found: list[Runner] = []
    refused: list[str] = []
    for tried in techniques:
        edits = _edits(present, tried) if tried.operator else ()
        if isinstance(edits, str):
            refused.append(f"{tried.name} is not tried, {edits}")
        else:
            found.append(_changed(present, tried.name, edits, [present.recipe, tried.recipe]))
    return tuple(found), tuple(refused)


def together(present: Runner, gained: Sequence[Runner]) -> Runner | None:
    """Return the best network with all techniques that gain; None where their operators do not fit together."""
    edits = tuple(edit for runner in gained for edit in runner.plan.edits[len(present.plan.edits) :])
    if edits and not _fits(present, edits):
        return None
    words = " + ".join(runner.words.removeprefix(f"{present.words}, ") for runner in gained)
    return _changed(present, words, edits, [runner.recipe for runner in gained])


def gaining(found: Sequence[Runner]) -> tuple[Runner, ...]:
    """Return those that are better than the first one by more than two standard errors, the best first."""
    scores = [runner.scored for runner in found]
    return tuple(found[i] for i in ranking(scores) if beats(scores[i], scores[0], _ERRORS))


def _changed(present: Runner, words: str, edits: Sequence[Edit], recipes: Sequence[Mapping[str, Any]]) -> Runner:
    design = replace(present.design, words=f"{present.words}, {words}")
    return replace(present, design=design, plan=present.plan.with_edits(*edits), recipe=joined(recipes))


def _edits(present: Runner, tried: Trying) -> tuple[Edit, ...] | str:
    """Return the edits of an operator, or why there are none."""
    if present.origin.widths_only:
        return "latency is estimated for the present layers only"
    try:
        scene = present.bench.scene(())
    except EditError as error:
        return str(error)
    edits, after = tried_on(scene, tried)
    if after is None:
        return "it finds no layer"
    return edits if present.origin.meets(after) else "the budget has no room"


def _fits(present: Runner, edits: Sequence[Edit]) -> bool:
    try:
        after = present.bench.scene(()).after(edits)
    except EditError:
        return False
    return present.origin.meets(after)
