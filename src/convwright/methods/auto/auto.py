"""The method that combines the others: proposals by all of them, a race by short trainings, then small steps.

The last step is about the recipe: which techniques the best network is trained on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from pydantic import Field

from convwright.architecture import Architecture
from convwright.cost.budget import human
from convwright.edits import Edit
from convwright.errors import BudgetError, ConvwrightError, EditError
from convwright.methods.auto.design_search import DesignOptions, DesignSearch, Runner, Runners, quality_of, reasons
from convwright.methods.auto.designs import DesignBuilder, ProposedDesign
from convwright.methods.auto.proposals import combinations, neighbours, proposals
from convwright.methods.auto.trained import trained_course
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.phased.techniques import Trying, default_techniques, joined, techniques_named, tried_on
from convwright.methods.script import Script
from convwright.methods.shared.halving import Rung, beats, ranking, rungs, survivors, tied

_RACE = 0.5  # share of the search's epochs that the race of the proposals gets; the rounds after it get the rest
_FINALISTS = 2
_JOINED = "combinations"
_RESTART = 4  # so many times as long as before the final training must be to begin anew
_WITH_ANEW = 3  # epochs of a race from which one entrant has new weights: two others are there, too
_SHOWN = 3
_SHARE = 4  # one in so many of the search's epochs is for the recipe
_LEAST = 3  # epochs of a training that is to tell what a technique is worth
_BESIDE = 2  # trainings beside those with a single technique: with none, and with those that gain
_ERRORS = 2.0  # standard errors by which a technique must gain: several are tried, and one would win by chance


class AutoOptions(DesignOptions):
    """Options of method ``auto``.

    Attributes:
        search_epochs: Epochs of all candidates before the final training; None: 4 times `tune_epochs`.
        eta: One in so many goes on.
        rounds: Rounds after the race at most: the first tries combinations, the others neighbours.
        proposals: How many are tried at most; None: as many as the epochs allow.
        techniques: What is tried of the recipe, by name or as it is; None: `default_techniques`, what is no operator
            first. A quarter of `search_epochs` is for them, each is trained for 3 epochs or more, and as many are tried
            as that pays for.
    """

    proposals: int | None = Field(None, ge=1)
    techniques: str | Sequence[str | Trying] | None = None


@register("auto")
class Auto(DesignSearch):
    """Proposes what every method would do with the network, and finds by short trainings which of it is best here.

    1. The untouched network is trained. Its structure tells which layers see nothing new (3D receptive field), the
       training which blocks make samples of several labels one (conflicting bundles) and which kernels carry signal
       (channel quality).
    2. Proposals. One is what is expected to be best: fewer blocks, and widths moved to small maps, or to large ones and
       more pixels where most work is done on tiny maps. It enters twice, with the trained weights and with new ones: if
       these are as good after their first epochs, the first training was no start. The others change one thing each:
       uniform widths; fewer blocks that are wider and more that are narrower; without the blocks in conflict or that
       see nothing new; widths by channel quality, or moved to small or large maps or into or out of the blocks; other
       resolutions; the stage and the kernel optimizer. Each is brought to the budget by its widths, so that all cost
       the same.
    3. Successive halving: all get a short training from the untouched network's weights, as far as they inherit them;
       the best third is trained on, three times as long, until few are left. Scores that differ by no more than their
       standard error are equal: the one proposed first wins (uniform widths are last), and where epochs are left over
       those equal to the last that goes on go on, too. A search that cannot pay for that gives each proposal one
       training of the same length.
    4. Combinations: to the best one is joined what else did better than uniform widths, one thing and several.
    5. Around the best one of these neighbours are tried: width moved, a block less or more, widths by its own channel
       quality. In both steps the present network is trained on beside the new ones. A combination is taken if it is
       better at all, since its parts were, too; a neighbour if it is better by more than the standard error.
    6. The recipe, where the search is long enough to tell: the best network is trained on with each technique alone,
       and with none. Those that gain more than twice the standard error are tried together, too.
    7. The best network, or two that cannot be told apart, is trained to the end, and beside it the untouched network
       for as many epochs as it had after the first training, with the same recipe.

    No training is thrown away on the way to the result: its weights come through all of them. Only a network that began
    with new weights begins anew with others, where the final training is 4 times as long as all its own before.

    Attributes:
        decisions: What was decided so far.
        findings: What is known of the network so far.
        left: Epochs that the search has left.

    Raises:
        BudgetError: No proposal meets the limits.
        ConvwrightError: The network has nothing that could change, or an option is out of its range.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:mnist-a")
        >>> limits = cw.parse_budget("macs<=50%").resolve(arch.profile())
        >>> method = cw.methods.Auto(arch, limits, epochs=2, tune_epochs=1)
        >>> [(c.role, c.epochs, c.probes) for c in method.ask()]
        [('base', 2, ('bundles', 'channel-norms', 'channel-quality'))]
    """

    Options = AutoOptions
    options: AutoOptions
    needs_budget = "redesigns a network to a budget; give one, such as macs<=50%"
    per_tuning = 4

    def set_up(self) -> None:
        """Refuse, before any training, what no training could help."""
        super().set_up()
        given, self.bench = self.options.techniques, DesignBuilder(self.arch, self.limits, self.terms.divisor)
        self.techniques = default_recipe(self.arch) if given is None else techniques_named(self.arch, given)
        self._first: tuple[Runner, ...] = ()  # the race's first rung, as it was scored
        self._near: set[str] = set()  # neighbours that were tried: where the present network stays, others are next
        found = proposals(self.bench, self.findings, most=2)
        if any(design.edits for design in found):
            return
        why = reasons(self.bench.dropped)
        if found:
            raise ConvwrightError(
                f"{self.arch.source} has nothing that method auto could change within {self.limits.describe()}"
                + (f" ({why})" if why else "")
            )
        raise BudgetError(f"no proposal meets {self.limits.describe()} ({why}). Raise the budget")

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        if not self.terms.epochs:
            yield from trained_course(self)
            return
        base = yield from self._base(self.bench)
        if base is None:
            return
        known, aim = self.findings, f"budget {self.limits.describe()}"
        worst = ", ".join(f"{name} {share:.0%}" for name, share in list(known.conflicts.items())[:_SHOWN])
        quality = "channel quality says nothing: all kernels show noise, or were not measured"
        if known.quality:
            (low, least), (high, most) = (end(known.quality.items(), key=itemgetter(1)) for end in (min, max))
            quality = f"channel quality from {least:.2f} ({low}) to {most:.2f} ({high}) times the mean"
        self._diagnosed(base, aim, f" ({worst})" if worst else "", quality)
        for_recipe = reserved(self.left, len(self.techniques))
        self.left -= for_recipe
        share = max(1, int(self.left * _RACE)) if self.options.rounds else self.left
        anew = self.terms.epochs > 0 and share >= _WITH_ANEW
        begun = proposals(self.bench, self.findings, min(self.options.proposals or 64, share - anew))
        uses, dropped = [d.use for d in begun], reasons(self.bench.dropped, most=len(self.bench.dropped))
        told = f"{len(begun)} of them, using {min(uses):.1%} to {max(uses):.1%} of the budget: "
        told += ", ".join(d.words for d in begun) + (f". Left out: {dropped}" if dropped else "")
        self._note("proposals", told)
        plans = (self.untouched.with_edits(*design.edits) for design in begun)
        racing = tuple(Runner(self.bench, d, plan, base.trial) for d, plan in zip(begun, plans, strict=True))
        if anew and len(racing) > 1:  # one with new weights instead of those of the first training
            design = replace(racing[1].design, words=f"{racing[1].words}, from new weights")
            racing = (racing[0], replace(racing[1], design=design, weights="fresh", anew=True), *racing[1:])
        racing = yield from self._race(racing, share)
        for number in range(self.options.rounds):
            if racing:
                racing = yield from self._round(number, racing)
        if racing and for_recipe:
            self.left += for_recipe
            racing = yield from self._recipe(racing[0], for_recipe)
        yield from self._end(base, racing)

    def _race(self, racing: tuple[Runner, ...], share: int) -> Runners:
        """Train all, the best of them on, and so forth; return those that the last rung cannot tell apart."""
        course = rungs(len(racing), share, self.options.eta)
        if course[0].count < len(racing):  # halving is too dear for all: one training of equal lengths
            course = (Rung(len(racing), max(1, share // len(racing))),)
        spare = share - sum(rung.cost for rung in course)
        for number, rung in enumerate(course, start=1):
            last = number == len(course)
            found = yield from self._trained(racing, rung.epochs, self.later_probes if last else ())
            self._first = self._first or tuple(r for r in found if not r.anew)
            scores = [r.scored for r in found]
            if last:
                kept = _expected_first(found, survivors(scores, 1, _FINALISTS))
            else:  # also those that are equal, as far as spare epochs pay for them
                further = course[number]
                kept = survivors(scores, further.count, further.count + spare // further.epochs)
                spare -= max(0, len(kept) - further.count) * further.epochs
            after = tuple(found[i] for i in kept)
            length = f"{rung.count} networks for {rung.epochs} epoch{'s' * (rung.epochs != 1)}"
            self._raced(f"rung {number} of {len(course)}, {length}", found, after, last)
            racing = after
            if not racing:
                break
        return racing

    def _round(self, number: int, racing: tuple[Runner, ...]) -> Runners:
        """Try what may be better than the best; return what is gone on with."""
        present, share = racing[0], self.left // (self.options.rounds - number)
        if share < 2:
            return racing
        spent = self.results[present.trial].candidate.epochs
        most = max(1, share // spent - 1)
        try:
            bench = present.bench
        except EditError as error:
            self._note(f"round {number + 1}", f"nothing is tried near {present.words}: {error}")
            return racing
        what, found = self._new(bench, present, most)
        if not found:
            return racing
        self._near |= {design.words for design in found}
        epochs = min(spent, share // (len(found) + 1))
        runners = (present, *(present.redesigned(bench, design) for design in found))
        trained = yield from self._trained(runners, epochs, self.later_probes)
        phase = f"{what}, {len(found)} beside the best for {epochs} epoch{'s' * (epochs != 1)}"
        return self._moved(phase, trained, stays_if_tied=what != _JOINED)

    def _new(self, bench: DesignBuilder, present: Runner, most: int) -> tuple[str, tuple[ProposedDesign, ...]]:
        """Return what is tried beside the present network: combinations once, then neighbours."""
        first, self._first = self._first, ()
        order = ranking([r.scored for r in first]) if first and first[0].scored.usable else ()
        # What did better than uniform widths, the first of all, in one training of the same length.
        better = [first[i].design for i in order if first[i].scored.score > first[0].scored.score]
        if designs := combinations(bench, present.design, better, most):
            return _JOINED, designs
        quality = quality_of(self.results[present.trial], bench.arch, bench.limits, bench.divisor)
        near = neighbours(bench, present.design, quality)
        return "neighbours", tuple(design for design in near if design.words not in self._near)[:most]

    def _moved(self, phase: str, found: tuple[Runner, ...], stays_if_tied: bool) -> tuple[Runner, ...]:
        """Decide a round: the first is the present network."""
        order = ranking([r.scored for r in found])
        if not order:
            self._raced(phase, found, (), last=True)
            return ()
        present, best = found[0], found[order[0]]
        stays = best is present or (stays_if_tied and present.scored.usable and tied(best.scored, present.scored))
        first = present if stays else best
        rest = [found[i] for i in order if found[i] is not first and tied(found[i].scored, first.scored)]
        after = (first, *rest[: _FINALISTS - 1])
        self._raced(phase, found, after, last=True)
        return after

    def _recipe(self, present: Runner, share: int) -> Runners:
        """Train on with none, with each technique, and with those together that gain; return what is gone on with."""
        count, epochs = recipe_course(share, len(self.techniques))
        tried: list[Runner] = []
        refused: list[str] = []  # techniques whose operator finds no layer or room
        for technique in self.techniques[:count]:
            edits = _edits(present, technique) if technique.operator else ()
            if isinstance(edits, str):
                refused.append(f"{technique.name} is not tried, {edits}")
            else:
                tried.append(_changed(present, technique.name, edits, [present.recipe, technique.recipe]))
        found = yield from self._trained((present, *tried), epochs, ())
        if not found[0].scored.usable:
            self._note("recipe", f"it stays as it was: without a technique it failed ({self._why_not(found[0])})")
            return (present,)
        scores = [runner.scored for runner in found]
        won = tuple(found[i] for i in ranking(scores) if beats(scores[i], scores[0], _ERRORS))
        edits = tuple(edit for runner in won for edit in runner.plan.edits[len(present.plan.edits) :])
        if len(won) > 1 and (not edits or _fits(present, edits)):  # all that gain at once
            words = " + ".join(runner.words.removeprefix(f"{present.words}, ") for runner in won)
            joint = _changed(present, words, edits, [runner.recipe for runner in won])
            added = yield from self._trained((joint,), epochs, ())
            found, won = (*found, *added), (*won, *(r for r in added if r.scored.usable))
        after = (max(won or found[:1], key=lambda r: r.scored.score),)
        words = f"recipe, {len(tried)} technique{'s' * (len(tried) != 1)} beside none for {epochs} epochs"
        self._raced("; ".join((words, *refused)), found, after, last=True)
        return after

    def _end(self, base: Evidence, racing: tuple[Runner, ...]) -> Script:
        """Train the best to the end, and the untouched network for as long."""
        if not racing:
            self._note("end", "no final network: no proposal could be trained")
            return
        epochs = racing[0].epochs + self.terms.tune_epochs
        self._step += 1
        # One that began with new weights begins anew, if it had few epochs against those to come: a short schedule is
        # at its highest rate almost from the start, and what that spoils stays spoilt.
        few = [r.anew and _RESTART * r.epochs <= self.terms.tune_epochs for r in racing]
        begun = [replace(r, weights="fresh") if anew else r for r, anew in zip(racing, few, strict=True)]
        finals = [self._candidate(runner, self.terms.tune_epochs) for runner in begun]
        seed, recipe = self.terms.seed + self._step, racing[0].recipe
        baseline = Candidate(self.untouched, base.trial, epochs, seed, role="baseline", recipe=recipe)
        *found, _ = yield (*finals, baseline)
        usable = [e for e in found if self._meets(e)]
        words = {e.trial: r.words for e, r in zip(found, racing, strict=True)}
        best = max(usable, key=lambda e: e.score, default=None)
        if best is None:
            self._note("end", f"no final network: {found[0].message or 'it breaks the limits'}", words)
            return
        self._final = best.trial
        costs = ", ".join(f"{human(best.costs[m], m)} {m}" for m in self.limits.limits if m in best.costs)
        others = "".join(f"; {words[e.trial]} {e.shown}" for e in usable if e is not best)
        self._note("end", f"{words[best.trial]}: {best.metric.name} {best.shown}, {costs}{others}", words, best.trial)

    def _raced(self, phase: str, found: Sequence[Runner], after: Sequence[Runner], last: bool) -> None:
        words = {r.trial: r.words for r in found}
        if not after:
            why = "; ".join(dict.fromkeys(map(self._why_not, found)))
            self._note(phase, f"all {len(found)} failed: {why}", words)
            return
        gone = [r for r in found if r not in after]
        failed = [r for r in gone if not r.scored.usable]
        parts = [f"{'kept' if last else 'on go'} {'; '.join(r.told for r in after)}"]
        order = ranking([r.scored for r in gone])
        if order:
            parts.append(f"against {'; '.join(gone[i].told for i in order)}")
        parts += [f"{r.words} failed ({self._why_not(r)})" for r in failed]
        self._note(phase, ", ".join(parts), words, after[0].trial)


def _expected_first(found: Sequence[Runner], kept: tuple[int, ...]) -> tuple[int, ...]:
    """Put first, of those that cannot be told apart from the best, the one that more was expected of.

    Where short trainings say nothing, the order of the proposals does: uniform widths are what others are to beat.
    """
    if not kept:
        return ()
    best = found[kept[0]].scored
    equal = [i for i, r in enumerate(found) if r.scored.usable and tied(r.scored, best)]
    first = min(equal, key=lambda i: (not found[i].design.factor, i))
    return (first, *(i for i in kept if i != first))[: len(kept)]


# ------------------------------------------------------------------ the recipe


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
