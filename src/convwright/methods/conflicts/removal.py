"""Conflict removal: blocks that make samples of several labels one are removed as soon as that is seen.

After Peer, Stabinger and Rodríguez-Sánchez, "Auto-tuning of Deep Neural Networks by Conflicting Layer Removal" (arXiv
2103.04331) and "Conflicting Bundles" (arXiv 2011.02956). The course and the three rules are those of the three versions
of their published code; residual networks, guards, kept weights and budgets are ours.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from convwright.cost.budget import costs_of, human
from convwright.edits import Plan, RemoveBlock
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import Candidate, Decision, Evidence, Stop, Weights, register
from convwright.methods.conflicts.blocks import BlockGroups, Conflicts, PruneRule, Watch, read_conflicts
from convwright.methods.options import MethodOptions, Terms
from convwright.methods.script import Batch, Script, Scripted

Check = Literal["after", "before", "start"]
Restart = Literal["fresh", "inherit"]
Answers = Generator[Batch, tuple[Evidence, ...], Evidence]

_FAILURES = 2
_SHOWN = 4


@dataclass(frozen=True)
class ConflictDecision(Decision):
    """What was decided after a trial.

    Attributes:
        conflicts: block -> share of samples in conflict; those above 0.
        removed: blocks that go.
        groups: blocks of each stage afterwards.
    """

    conflicts: Mapping[str, float] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()


class ConflictOptions(MethodOptions):
    """Options of method ``conflicts``.

    Attributes:
        rule: How many blocks a stage keeps, see ``pruned``: ``truncate``, ``all_groups`` and ``first_group`` are those
            of the first, second and third version of the published code.
        check: ``after`` each epoch of the window (first and third version), ``before`` each, so that new weights are
            checked first (second), or at the ``start`` only: a forward pass decides, without any training (ours).
        window: Epochs in which conflicts are looked for. Published: 10.
        watch: Whether the ``last`` block decides (published) or ``any``; None: the last, in a network with residual
            blocks any, since a conflict in a branch does not reach what follows.
        restart: ``fresh``: all weights are drawn anew after a removal (published); ``inherit``: they are kept (ours).
            None: fresh, ``inherit`` where the network comes trained.
        restarts: So many removals at most.
        probe: What is observed; a variant of ``bundles``, such as ``bundles-64``, the sample of the later versions.
    """

    rule: PruneRule = "first_group"
    check: Check = "after"
    window: int = Field(10, ge=1, le=100)
    watch: Watch | None = None
    restart: Restart | None = None
    restarts: int = Field(20, ge=1, le=1000)
    probe: str = "bundles"


@register("conflicts")
class ConflictRemoval(Scripted):
    """Train; where a conflict is seen in the first epochs, remove blocks and begin anew; end when none is seen.

    A stage of the network is a group. A plain block is judged by its output, a residual block by its branch before the
    addition (the published code does not tune residual networks). Blocks that cannot be removed, since they change the
    shape, stay and are named; a stage keeps one block; samples that are one in the images themselves do not count.
    A network that diverges is no clean one: it is tried again with another seed, once.

    With a budget, blocks go on being removed when no conflict is left: those with the highest mean share of samples in
    conflict first, then those whose removal alone costs the least validation accuracy, until the budget holds.

    A budget may limit macs, params, activations and weights, and latency where it estimates networks. A network that
    comes trained has its conflicts removed first, and is trained on for `tune_epochs`. Published are 120 epochs. Each
    restart takes the next seed; widths stay.

    Attributes:
        decisions: What was decided so far.
        groups: The stages' blocks, and why some cannot be removed.

    Raises:
        BudgetError: Even with one block per stage a limit is broken, or latency is limited and nothing estimates it.
        ConvwrightError: An option is out of its range, or the network has no blocks that could be removed.

    Examples:
        >>> import convwright as cw
        >>> method = cw.methods.ConflictRemoval(cw.read("zoo:resnet20"), epochs=12)
        >>> [(c.epochs, c.stop.probe) for c in method.ask()]
        [(12, 'bundles.any-10')]
    """

    Options = ConflictOptions
    options: ConflictOptions
    default_terms = Terms(epochs=0)
    beyond_widths = True

    def set_up(self) -> None:
        """Find the groups; refuse, before any training, what no removal could help."""
        arch, given = self.arch, self.options
        self.groups = BlockGroups.of(arch)
        self.gone: tuple[str, ...] = ()
        self._known: dict[frozenset[str], dict[str, int]] = {}
        if not self.groups.stages:
            raise ConvwrightError(
                f"{arch.source} has no blocks: conflict removal takes out residual blocks or repeated units. Put "
                "repeated layers into modules of one class, or use method 'uniform'"
            )
        residual = any(block.kind == "residual" for block in arch.blocks)
        self.watch: Watch = given.watch or ("any" if residual else "last")
        self.restart: Restart = given.restart or ("fresh" if self.terms.epochs else "inherit")
        self.untouched, self.probes = Plan.empty(arch), (given.probe,)
        self._check_limits()
        self._diverged: set[int] = set()

    def _meets(self, evidence: Evidence) -> bool:
        """Whether a trial was trained to its end, stayed finite, and meets the limits."""
        whole = evidence.status == "done" and evidence.candidate.epochs > 0
        trained = whole and math.isfinite(evidence.score) and evidence.trial not in self._diverged
        return trained and super()._meets(evidence)

    def _run(self) -> Script:
        parent: int | None = None
        if not self.terms.epochs:
            (base,) = yield (Candidate(self.untouched, None, 0, self.terms.seed, role="base", probes=self.probes),)
            if not base.usable:
                self._record("base", base, f"nothing to begin with, {base.message}")
                return
            parent = base.trial
            self._judge(base, "the trained network")
        failures = 0
        most = self.options.restarts
        for turn in range(most + _FAILURES):
            checked = turn < most
            if turn == most:
                self._note("restarts", f"{most} trials, the most that were allowed: trained without a check")
            evidence = yield from self._trial(parent, turn, checked)
            found = read_conflicts(evidence, self.watch, self._last_epoch) if evidence.usable else None
            if not evidence.usable or (found is not None and found.diverged):
                failures += 1
                self._failed(evidence, found)
                if failures == _FAILURES:
                    return
                continue
            failures = 0
            if checked and self._judge(evidence, f"trial of {self._size()} blocks", found):
                parent = evidence.trial
                continue
            if evidence.status == "stopped" or not evidence.candidate.epochs:  # nothing more can go: trained to its end
                evidence = yield from self._trial(parent, turn, False)
                if not evidence.usable:
                    self._failed(evidence, None)
                    return
            if self.limits is None or self.limits.met(evidence.costs):
                yield from self._end(evidence)
                return
            if not (yield from self._to_budget(evidence, found)):
                return
            parent = evidence.trial
        self._note("end", f"ended after {most + _FAILURES} trials")

    @property
    def _last_epoch(self) -> int:
        return {"after": self.options.window, "before": self.options.window - 1, "start": 0}[self.options.check]

    def _trial(self, parent: int | None, turn: int, checked: bool) -> Answers:
        """Look at new weights where that is asked for; then train, to the end or to a conflict."""
        plan, seed = self.untouched.with_edits(*map(RemoveBlock, self.gone)), self.terms.seed + turn
        origin, weights = self._start(parent)
        if checked and self.options.check != "after":
            (look,) = yield (Candidate(plan, origin, 0, seed, probes=self.probes, weights=weights),)
            found = read_conflicts(look, self.watch, 0) if look.usable else None
            if not look.usable or (found is not None and (found.seen or found.diverged)):
                return look
        rule = Stop(f"bundles.{self.watch}-{self._last_epoch}", 0.0) if checked and self._last_epoch else None
        epochs = self.terms.epochs or self.terms.tune_epochs
        (evidence,) = yield (Candidate(plan, origin, epochs, seed, rule, probes=self.probes, weights=weights),)
        return evidence

    def _start(self, parent: int | None) -> tuple[int | None, Weights]:
        """Return whose weights a trial begins with, and how it gets them."""
        return (parent, "inherit") if parent is not None and self.restart == "inherit" else (None, "fresh")

    def _judge(self, evidence: Evidence, words: str, found: Conflicts | None = None) -> bool:
        """Remove what conflicts; return whether something goes."""
        found = found or read_conflicts(evidence, self.watch, self._last_epoch)
        if found is None:
            self._record(words, evidence, "nothing was observed: it has no blocks to be judged")
            return False
        if found.diverged:
            self._record(words, evidence, f"{found.diverged} gives numbers that are not finite {found.moment}")
            return False
        if not found.seen:
            self._record(words, evidence, "no conflict", kept=evidence.trial)
            return False
        known = {name for stage in self.groups.left(self.gone) for name in stage}
        bad = {name: share for name, share in found.blocks.items() if share > 0 and name in known}
        new, remark = self.groups.cut(self.gone, bad, self.options.rule, exact=self.restart == "inherit")
        self.gone = (*self.gone, *new)
        what = f"{_listed(new)} removed, {self._sizes()}" if new else "none of them can be removed"
        reason = f"{len(bad)} of {len(found.blocks)} blocks conflict {found.moment}; {what}"
        self._record(words, evidence, f"{reason}; {remark}" if remark else reason, bad, new)
        return bool(new)

    def _to_budget(self, evidence: Evidence, found: Conflicts | None) -> Generator[Batch, tuple[Evidence, ...], bool]:
        """Remove blocks until the budget holds: first those that conflict most, then those that cost least."""
        mean = found.mean if found is not None else {}
        free = self.groups.removable(self.gone)
        first = sorted((n for n in free if mean.get(n, 0) > 0), key=lambda n: -mean[n])
        order = list(first)
        if not self._enough(order):
            rest = [n for n in free if n not in first]
            plans = [evidence.candidate.plan.with_edits(RemoveBlock(name)) for name in rest]
            found_scores = yield tuple(Candidate(plan, evidence.trial, 0, self.terms.seed) for plan in plans)
            score = {n: e.score if e.usable else -math.inf for n, e in zip(rest, found_scores, strict=True)}
            order += sorted(rest, key=lambda n: (-score[n], -free.index(n)))
        possible = self.groups.going(order, self.gone)
        # Costs fall with every block that goes, so halving finds the fewest that do.
        count = bisect.bisect_left(range(len(possible)), True, key=lambda n: self._enough(possible[:n]))
        chosen = possible[:count]
        self.gone = (*self.gone, *chosen)
        assert self.limits is not None
        met = self.limits.met(self._costs(self.gone))
        self._record(
            "budget",
            evidence,
            f"{_listed(chosen)} removed for {self.limits.describe()}: {sum(n in first for n in chosen)} by conflict, "
            f"{sum(n not in first for n in chosen)} by the {evidence.metric.name} without it; {self._sizes()}"
            + ("" if met else "; the budget is still not met, and nothing else can be removed"),
            removed=chosen,
        )
        return met

    def _enough(self, more: Collection[str]) -> bool:
        assert self.limits is not None
        return self.limits.met(self._costs((*self.gone, *self.groups.going(more, self.gone))))

    def _end(self, evidence: Evidence) -> Script:
        """Train the untouched network for as long, with the same seed."""
        given = evidence.candidate
        origin, weights = self._start(None if self.terms.epochs else 0)
        yield (Candidate(self.untouched, origin, given.epochs, given.seed, role="baseline", weights=weights),)
        self._final = evidence.trial
        total = sum(map(len, self.groups.stages))
        reason = f"{self._size()} of {total} blocks are left, {self._sizes()}; {evidence.metric.name} {evidence.shown}"
        self._record("end", evidence, reason, kept=evidence.trial)

    def _costs(self, gone: Sequence[str]) -> dict[str, int]:
        key = frozenset(gone)
        if key not in self._known:
            network = self.arch.apply(*map(RemoveBlock, gone), verify=False) if gone else self.arch
            limited = self.limits.costs_of(network) if self.limits is not None else {}
            self._known[key] = {**costs_of(network.profile()), **limited}
        return self._known[key]

    def _check_limits(self) -> None:
        if self.limits is None:
            return
        least = self._costs(self.groups.going([n for stage in self.groups.stages for n in reversed(stage)]))
        over = self.limits.excess(least)
        if over:
            metric = next(iter(over))
            raise BudgetError(
                f"removing blocks cannot meet {self.limits.describe()}: with all that can go removed, {metric} is "
                f"still {human(least[metric], metric)}; {len(self.groups.fixed)} blocks cannot be removed. Allow more, "
                "or use method 'uniform'"
            )

    # ------------------------------------------------------------------ what is recorded

    def _failed(self, evidence: Evidence, found: Conflicts | None) -> None:
        if found is not None and evidence.usable:
            self._diverged.add(evidence.trial)
            why = f"diverged, {found.diverged} gives numbers that are not finite {found.moment}: that is no conflict"
        else:
            why = f"failed, {evidence.message}"
        self._record(f"trial of {self._size()} blocks", evidence, why)

    def _record(
        self,
        phase: str,
        evidence: Evidence,
        reason: str,
        conflicts: Mapping[str, float] | None = None,
        removed: tuple[str, ...] = (),
        kept: int | None = None,
    ) -> None:
        words = {evidence.trial: f"{len(evidence.candidate.plan.edits)} blocks removed"}
        counts = tuple(map(len, self.groups.left(self.gone)))
        made = ConflictDecision(phase, words, kept, reason, dict(conflicts or {}), removed, counts)
        self.decisions = (*self.decisions, made)

    def _size(self) -> int:
        return sum(map(len, self.groups.left(self.gone)))

    def _sizes(self) -> str:
        return f"blocks per stage {[len(stage) for stage in self.groups.left(self.gone)]}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) or "nothing"
