"""The course of `auto` for a network that comes trained: cut, repair and judge without training, then race the best."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from convwright.edits import Edit, Resolution
from convwright.errors import BudgetError, ConvwrightError, EditError
from convwright.methods.base import Candidate, Evidence
from convwright.methods.saliency.rounds import Cutting, Start
from convwright.methods.script import Batch, Script
from convwright.methods.shared.halving import Scored, ranking, tied

if TYPE_CHECKING:
    from convwright.methods.auto.design_search import DesignSearch

_ROUNDS = 3
_RACING = 3  # designs that get the short tuning
_SHARE = 3  # the short tuning is one part in so many of the final one
_GRID = 8  # pixels: sides are multiples of this


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A design as it was judged: what it is, its last trial, and how its next training gets its weights."""

    words: str
    trial: Evidence
    fresh: bool = False

    @property
    def scored(self) -> Scored:
        return Scored.of(self.trial)

    def candidate(self, epochs: int, seed: int) -> Candidate:
        plan = self.trial.candidate.plan
        return Candidate(
            plan, None if self.fresh else self.trial.trial, epochs, seed, weights="fresh" if self.fresh else "inherit"
        )


def trained_course(search: DesignSearch) -> Script:
    """Yield the batches of the search; the final trial is noted in it."""
    terms = search.terms
    cutting = Cutting(search.arch, search.limits, terms.divisor, rounds=_ROUNDS)
    (base,) = yield (Candidate(search.untouched, None, 0, terms.seed, role="base", probes=cutting.probes),)
    if not base.usable:
        search._note("network", f"there is nothing to begin with, {base.message}")
        return
    found: list[_Entrant] = []
    for words, structure, cuts in _designs(search, cutting):
        judged = yield from _judged(search, base, words, structure, cuts)
        if judged is not None:
            found.append(judged)
    if not found:
        search._note("designs", "no design could be judged")
        return
    racing = [found[i] for i in ranking([e.scored for e in found])[:_RACING]]
    told = ", ".join(f"{e.words} {e.trial.shown}" for e in found)
    search._note(
        "designs", f"judged without training: {told}", {e.trial.trial: e.words for e in found}, racing[0].trial.trial
    )
    # Weights of half the untouched network's accuracy are worth little: new ones race, too.
    if base.metric.halved(base.score, racing[0].trial.score) and terms.tune_epochs > 1:
        racing.append(replace(racing[0], words=f"{racing[0].words}, new weights", fresh=True))
    short = terms.tune_epochs // _SHARE
    if short and len(racing) > 1:
        raced = yield tuple(e.candidate(short, terms.seed + 1) for e in racing)
        racing = [_Entrant(e.words, after) for e, after in zip(racing, raced, strict=True) if search._meets(after)]
        order = ranking([e.scored for e in racing])
        told = ", ".join(f"{e.words} {e.trial.shown}" for e in racing)
        racing = [racing[i] for i in order if tied(racing[i].scored, racing[order[0]].scored)][:2]
        search._note("race", f"{told} after {short} epochs", kept=racing[0].trial.trial if racing else None)
    else:
        short, racing = 0, racing[:1]
    if racing:
        yield from _end(search, racing, short)


def _designs(search: DesignSearch, cutting: Cutting) -> Sequence[tuple[str, tuple[Edit, ...], Cutting | None]]:
    """Return what is judged: words, a new resolution, and how the rest of the budget is met."""
    designs: list[tuple[str, tuple[Edit, ...], Cutting | None]] = [
        ("narrower", (), replace(cutting, blocks=False)),
        ("narrower, fewer blocks", (), cutting),
    ]
    side = int(search.arch.example_input.shape[-1])
    alone = _largest_side(search, side)
    between = round((side * alone) ** 0.5 / _GRID) * _GRID if alone else 0
    if alone and alone < between < side:
        designs.append((f"{between} pixels, narrower, fewer blocks", (Resolution(between),), cutting))
    if alone and alone < side:
        designs.append((f"{alone} pixels", (Resolution(alone),), None))
    return designs


def _largest_side(search: DesignSearch, side: int) -> int:
    """Return the largest side of square images at which the network meets the limits as it is; 0: none."""
    shape = search.arch.example_input.shape
    if len(shape) != 4 or shape[-2] != shape[-1]:
        return 0
    for smaller in range((side - 1) // _GRID * _GRID, side // 4, -_GRID):
        try:
            network = search.arch.apply(Resolution(smaller), verify=False)
            costs = search.limits.costs_of(network)
        except ConvwrightError:  # such as a head that takes one size only
            return 0
        if search.limits.met(costs):
            return smaller
    return 0


def _judged(
    search: DesignSearch, base: Evidence, words: str, structure: tuple[Edit, ...], cuts: Cutting | None
) -> Generator[Batch, tuple[Evidence, ...], _Entrant | None]:
    """Carry out a design step by step without training; None where it cannot be made."""
    plan, arch, now = search.untouched, search.arch, base
    try:
        if structure:
            plan, arch = plan.with_edits(*structure), arch.apply(*structure, verify=False)
            probes = cuts.probes if cuts is not None else ()
            (now,) = yield (Candidate(plan, base.trial, 0, search.terms.seed, probes=probes),)
        if cuts is not None:
            cut = yield from cuts.run(Start(plan, arch, now), search.terms.seed)
            if cut is not None:
                (now,) = yield (Candidate(cut.plan, cut.parent, 0, search.terms.seed),)
    except (BudgetError, EditError) as error:
        search._note("designs", f"{words} cannot be made: {error}")
        return None
    return _Entrant(words, now) if search._meets(now) else None


def _end(search: DesignSearch, racing: Sequence[_Entrant], short: int) -> Script:
    terms = search.terms
    seed = terms.seed + 2
    baseline = Candidate(search.untouched, 0, short + terms.tune_epochs, seed, role="baseline")
    *found, _ = yield (*(e.candidate(terms.tune_epochs, seed) for e in racing), baseline)
    usable = [(e.words, after) for e, after in zip(racing, found, strict=True) if search._meets(after)]
    if not usable:
        search._note("end", f"no final network: {found[0].message or 'it breaks the limits'}")
        return
    before = [(f"{e.words}, as it was before the last training", e.trial) for e in racing if search._meets(e.trial)]
    words, best = max([*usable, *before], key=lambda pair: pair[1].score)
    search._final = best.trial
    search._note("end", f"{words}: {best.metric.name} {best.shown}", {best.trial: words}, best.trial)
