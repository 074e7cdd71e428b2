"""Phased design: how small can a network get by phases, and with which training techniques?

After Ethiraj and Bolla 2022. Their phases and techniques are the paper's; how a phase is decided is reconstructed,
since they did it by hand.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convwright.cost.budget import Limits, human
from convwright.edits import Edit, Plan
from convwright.errors import BudgetError, EditError
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.options import MethodOptions
from convwright.methods.phased.moves import PHASES, Draft, Phase, Scene
from convwright.methods.phased.techniques import Trying, default_techniques, joined, techniques_named, tried_on
from convwright.methods.script import Batch, Script, Scripted
from convwright.methods.shared.halving import Scored, beats
from convwright.methods.shared.uniform_widths import uniform_widths

Answers = Generator[Batch, tuple[Evidence, ...], tuple[Evidence, ...]]


@dataclass(frozen=True, eq=False)
class _Stand:
    """A trained network that a phase begins with."""

    evidence: Evidence
    scene: Scene


Stands = Generator[Batch, tuple[Evidence, ...], _Stand]


@dataclass(frozen=True, eq=False)
class _Option:
    """A way to go on: what it is, edits after the present plan, the network that they give, and the recipe."""

    words: str
    edits: tuple[Edit, ...]
    scene: Scene
    recipe: Mapping[str, Any] = field(default_factory=dict)


class PhasedOptions(MethodOptions):
    """Options of method ``phased``.

    Attributes:
        techniques: What to try at the end, by name or as it is; None: `default_techniques`.
    """

    techniques: str | Sequence[str | Trying] | None = None


@register("phased")
class PhasedDesign(Scripted):
    """Phases that cut parameters until the budget holds, then techniques one by one and together.

    The phases, each trained with the weights of the one before:

    0. the untouched network is trained;
    1. global average pooling before a linear layer that reads a flattened map;
    2. narrow transitions: the channels that a stage hands to the next, smaller map are narrowed. The paper puts 1x1
       convolutions there; on a network that has them these channels are theirs, on any other they are those of
       the stage's last layers, with the same effect on what follows and without another layer;
    3. the last blocks or convolutions that can be removed are dropped;
    4. dense convolutions become depthwise separable, from the most expensive one on, the first one left dense;
    5. all widths are narrowed, alike or where they cost most, to just below the budget.

    Reconstructed, for the authors chose by hand: the *use* of a network is the share of the tightest limit that it
    uses. A phase's target falls geometrically from the present use to 1 (the budget) over the phases that are left
    and have something to propose. The phase's *level* is its target, or the use of its most economical
    proposal where that is lower, but at least 1. Every proposal is narrowed to this level, and so is a rival
    without a change of structure. So all trials of a phase cost the same, and the one with the highest validation
    accuracy is kept; of equal ones the cheaper, then the earlier. If all of them fail, the network stays as it was.
    A cut that alone would go below the budget is not proposed in phases 3 and 4.

    Then the network is trained on with each technique alone, and once with none. Techniques that beat the latter by
    more than the standard error of the difference are joined, and the joint recipe is kept if it beats the best
    single one. Techniques that are operators are edits, tried where the budget leaves room.

    Beside every phase the untouched network is trained on by as many epochs, with the same seeds; its last training
    has the recipe of the result.

    Attributes:
        decisions: What was decided so far.

    Raises:
        BudgetError: Even the smallest widths break a limit, or latency is limited.
    """

    Options = PhasedOptions
    options: PhasedOptions
    limits: Limits  # never None here
    needs_budget = "cuts a network to a budget; give one, such as params<=30%"

    def set_up(self) -> None:
        """Refuse, before any training, what no training could help."""
        arch, limits, given = self.arch, self.limits, self.options.techniques
        if limits.estimates:
            raise BudgetError(
                "method phased cannot hold a limit on latency: its estimate is for the layers that are there now, "
                "and the phases put others in; limit macs or params, or use --method uniform"
            )
        self.techniques = default_techniques(arch) if given is None else techniques_named(arch, given)
        self.original, self.untouched = Scene(arch, limits), Plan.empty(arch)
        # Refused here, before any training; and what is fallen back on where all trials of the last phase fail.
        self.narrowed = uniform_widths(arch, limits, self.terms.divisor) if self.original.use > 1 else ()
        self._links: list[int] = []  # trials of the untouched network, each the parent of the next

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        (base,) = yield (Candidate(self.untouched, None, self.terms.epochs, self.terms.seed, role="base"),)
        named = {0: "the untouched network"}
        if not base.usable:
            self._note("phase 0, base", f"there is nothing to begin with, {base.message}", named)
            return
        at = self._stand_at(base, self.original)
        self._links = [0]
        self._note("phase 0, base", f"begins with {_numbers(base)}", named, 0)
        if self.original.use <= 1:
            self._note("phases 1 to 5", f"nothing to cut: {self._used(base.costs)} already")
        else:
            for number, phase in enumerate(PHASES, start=1):
                name, options = f"phase {number}, {phase.name}", self._options(at, phase, PHASES[number:])
                if options:
                    at = yield from self._phase(name, at, options)
                else:
                    why = "nothing left to cut" if at.scene.use <= 1 else "nothing that it could change"
                    self._note(name, f"skipped, {why}: {self._used(at.scene.costs)}")
        if not self._meets(at.evidence):
            at = self._stand_at(base, self.original)
            self._links = [0]
            after = self.original.narrowed(self.narrowed)
            fallback = _Option("all widths of the untouched network alike", self.narrowed, after)
            at = yield from self._phase("phases undone", at, [fallback])
        if self._meets(at.evidence):
            yield from self._techniques(at)

    def _phase(self, name: str, at: _Stand, options: Sequence[_Option]) -> Stands:
        """Try the options of a phase; return the best, or where it began."""
        found = yield from self._tried(at, options)
        words = _words(found, options)
        best = _highest(self.limits, found)
        if best is None:
            self._note(name, f"the network stays as it was, {_failures(found, words)}", words)
            return at
        self._note(name, f"{words[best.trial]}, {_numbers(best)}{_rest(best, found, words)}", words, best.trial)
        return self._stand_at(best, options[found.index(best)].scene)

    def _tried(self, at: _Stand, options: Sequence[_Option]) -> Answers:
        """Ask for options and, beside them, the untouched network, all trained on; return the options' evidence."""
        seed = self.terms.seed + len(self._links)
        asked = [self._candidate(at, option, seed) for option in options]
        evidence = yield (*asked, *self._beside(seed))
        found, beside = evidence[: len(asked)], evidence[len(asked) :]
        # Where the phase led nowhere, its baseline does not count: it would be trained longer than the result.
        if any(e.usable for e in found):
            self._links += [baseline.trial for baseline in beside if baseline.usable]
        return found

    def _beside(self, seed: int) -> Batch:
        """Return the training of the untouched network beside that of a phase."""
        epochs = self.terms.tune_epochs
        return (Candidate(self.untouched, self._links[-1], epochs, seed, role="baseline"),)

    def _candidate(self, at: _Stand, option: _Option, seed: int) -> Candidate:
        plan = at.evidence.candidate.plan.with_edits(*option.edits)
        return Candidate(plan, at.evidence.trial, self.terms.tune_epochs, seed, recipe=option.recipe)

    def _used(self, costs: Mapping[str, int]) -> str:
        return ", ".join(
            f"{human(costs[m], m)} of {human(limit, m)} {m}" for m, limit in self.limits.limits.items() if m in costs
        )

    # ------------------------------------------------------------------ the options of a phase

    def _options(self, at: _Stand, phase: Phase, later: Sequence[Phase]) -> list[_Option]:
        """Return the plans of a phase, all brought to one level, and a rival without a new structure."""
        scene = at.scene
        if scene.use <= 1 and later:
            return []
        left = 1 + sum(other.apt(scene) for other in later)
        target = max(1.0, scene.use) ** ((left - 1) / left)
        begun = [(draft, after) for draft in phase.propose(scene, target) if (after := scene.tried(draft.edits))]
        level = max(1.0, min([target, *(after.use for draft, after in begun if draft.edits)]))
        options = [option for draft, after in begun if (option := self._levelled(at, draft, after, level))]
        if options and later and (rival := self._levelled(at, Draft("only narrowed, all widths alike"), scene, level)):
            options.append(rival)
        return list({option.edits: option for option in reversed(options)}.values())[::-1]

    def _levelled(self, at: _Stand, draft: Draft, after: Scene, level: float) -> _Option | None:
        """Bring the widths of a draft to a level; None where they cannot be."""
        aims = Limits({metric: math.floor(limit * level) for metric, limit in self.limits.limits.items()})
        if aims.met(after.costs) and not draft.grows:
            return _Option(draft.words, draft.edits, after)
        try:
            widths = uniform_widths(after.arch, aims, self.terms.divisor, draft.weights, fill=level == 1)
            option = _Option(draft.words, (*draft.edits, *widths), after.narrowed(widths))
        except (BudgetError, EditError):
            return None
        return option if aims.met(option.scene.costs) and self._replays(at, option) else None

    def _replays(self, at: _Stand, option: _Option) -> bool:
        """Whether the whole plan, done at once, gives the same shapes: of tied groups, ratios may round otherwise."""
        if not any(group.tied for group in self.original.arch.free_groups):
            return True
        whole = self.original.tried((*at.evidence.candidate.plan.edits, *option.edits))
        if whole is None:
            return False
        states = (scene.arch.model.state_dict() for scene in (whole, option.scene))
        one, two = ({name: tensor.shape for name, tensor in state.items()} for state in states)
        return one == two

    # ------------------------------------------------------------------ techniques

    def _techniques(self, at: _Stand) -> Script:
        """Train on with each technique alone and with none, then with those together that won."""
        options, refused = [_Option("no technique", (), at.scene)], []
        for tried in self.techniques:
            edits, after = tried_on(at.scene, tried)
            if after is None:
                refused.append(f"{tried.name} finds no layer here")
            elif not self.limits.met(after.costs):
                refused.append(f"no room for {tried.name} ({self._used(after.costs)})")
            else:
                options.append(_Option(tried.name, edits, after, tried.recipe))
        parent_link, seed = self._links[-1], self.terms.seed + len(self._links)
        found = yield from self._tried(at, options)
        words, control = _words(found, options), found[0]
        won = [e for e in found[1:] if self._meets(e) and beats(Scored.of(e), Scored.of(control))]
        best = _highest(self.limits, won or [control])
        name = "techniques, one by one"
        if best is None:
            self._note(name, f"none kept, {_failures(found, words)}", words)
            return
        kept = self._stand_at(best, options[found.index(best)].scene)
        winners = f"won by more than noise: {', '.join(words[e.trial] for e in won)}" if won else "none won"
        others = "".join((_rest(best, found, words), *(f"; {reason}" for reason in refused)))
        self._note(name, f"{words[best.trial]}, {_numbers(best)}; {winners}{others}", words, best.trial)
        if len(won) > 1:
            kept = yield from self._together(at, kept, [options[found.index(e)] for e in won], seed)
        recipe = kept.evidence.candidate.recipe
        if recipe:  # the untouched network, too, is trained last with what the result was trained with
            epochs = self.terms.tune_epochs
            yield (Candidate(self.untouched, parent_link, epochs, seed, role="baseline", recipe=recipe),)

    def _together(self, at: _Stand, alone: _Stand, winners: Sequence[_Option], seed: int) -> Stands:
        """Train with all winners at once; return that if it is more accurate than the best of them alone."""
        name, words, best = "techniques, together", " + ".join(o.words for o in winners), alone.evidence
        edits = tuple(edit for option in winners for edit in option.edits)
        after = at.scene.tried(edits)
        if after is None or not self.limits.met(after.costs):
            self._note(name, f"{words} do not fit into the budget together")
            return alone
        option = _Option(words, edits, after, joined(o.recipe for o in winners))
        (found,) = yield (self._candidate(at, option, seed),)
        named = {found.trial: words}
        if not found.usable:
            self._note(name, f"not kept, {_failures([found], named)}", named)
        elif found.score <= best.score or not self._meets(found):
            self._note(name, f"{words} is not kept: {found.shown} against {best.shown}", named)
        else:
            self._note(name, f"{words}, {_numbers(found)}, against {best.shown}", named, found.trial)
            return self._stand_at(found, after)
        return alone

    def _stand_at(self, evidence: Evidence, scene: Scene) -> _Stand:
        """Go on from a trial, which is the result as long as nothing better is found."""
        self._final = evidence.trial
        return _Stand(evidence, scene)


def _highest(limits: Limits, found: Sequence[Evidence]) -> Evidence | None:
    """Return the most accurate trial; of equal ones the cheaper, then the earlier. None if all failed."""

    def rank(evidence: Evidence) -> tuple[float, float, int]:
        return -evidence.score, max(evidence.costs[m] / limit for m, limit in limits.limits.items()), evidence.trial

    return min((e for e in found if e.usable), key=rank, default=None)


# ------------------------------------------------------------------ words


def _words(found: Sequence[Evidence], options: Sequence[_Option]) -> dict[int, str]:
    return {evidence.trial: option.words for evidence, option in zip(found, options, strict=True)}


def _numbers(evidence: Evidence) -> str:
    costs = evidence.costs
    return f"trial {evidence.trial} at {evidence.judged} with {costs['params']:,} parameters and {costs['macs']:,} MACs"


def _rest(best: Evidence, found: Sequence[Evidence], words: Mapping[int, str]) -> str:
    others = [f"{words[e.trial]} {e.shown if e.usable else f'failed ({e.message})'}" for e in found if e is not best]
    return f", against {'; '.join(others)}" if others else ""


def _failures(found: Sequence[Evidence], words: Mapping[int, str]) -> str:
    return "; ".join(f"{words[e.trial]} failed ({e.message})" for e in found)
