"""Channel search: how wide should each layer be? Short trainings, and a quality of the kernels, decide.

After CONetV2 (Wang et al. 2021). ``mode="parity"`` is the course of its published code, which was read line by line;
``mode="corrected"`` is ours, and keeps to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from convwright.cost.budget import human
from convwright.edits import Plan
from convwright.errors import ConvwrightError
from convwright.methods.base import Candidate, Decision, Evidence, register
from convwright.methods.channel_search.readings import Reading, check_measurable, read_trial
from convwright.methods.channel_search.response import Response, trends_of
from convwright.methods.channel_search.walks import OnBudget, Published, Verdict
from convwright.methods.options import MethodOptions
from convwright.methods.script import Batch, Script, Scripted
from convwright.methods.shared.width_surface import Surface, Widths, own_costs
from convwright.metrics.quality.channel_quality import members

Mode = Literal["corrected", "parity"]
Rule = Literal["greedy", "annealing", "response"]
Transfer = Literal["net2wider", "svd", "fresh"]
Metric = Literal["qc", "new_qc", "rank", "knowledge_gain"]

TINY = 16  # the published first width, and the published step
_PROBES: dict[Mode, str] = {"corrected": "channel-quality", "parity": "channel-quality-parity"}
_PUBLISHED_BOUNDS = (16, 256)
_CARRIED = 2  # fewest channels whose weights a later trial can take over: one alone carries no labels
_FAILURES = 2  # so many failed trials in a row end the search
_SILENT = 3  # and so many in a row in which no kernel has any quality
_SHOWN = 3  # widths named in a sentence
_SPREAD: dict[Rule, float] = {"greedy": 4.0, "annealing": 4.0, "response": 3.0}


@dataclass(frozen=True)
class WidthDecision(Decision):
    """What was decided after one trial of a channel search; all that a picture of the search needs.

    Attributes:
        widths: Width of every free group in the trial.
        values: Quality of every free group that has one.
        network: Mean over the groups; None where there is none.
        score: Validation accuracy, 0..1; None where the trial failed.
        costs: MACs and parameters.
        accepted: Whether the search went on from there.
        heat: The temperature.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    network: float | None = None
    score: float | None = None
    costs: Mapping[str, int] = field(default_factory=dict)
    accepted: bool = False
    heat: float = 0.0


class ChannelOptions(MethodOptions):
    """Options of method ``channel-search``.

    Attributes:
        mode: ``corrected`` or ``parity``.
        rule: ``greedy``, ``annealing``, or in corrected mode ``response``; None: annealing, in parity mode greedy.
        trials: Of the search. Published: 36.
        trial_epochs: Epochs of each. Published: 2.
        gamma: Weight of earlier trials. Published: 0.6 to 0.9, 0.8 by default.
        start: Where it begins: ``tiny`` (16 channels everywhere), ``given`` (the network's own widths), or a number
            of channels; None: ``given``, in parity mode ``tiny``. A start below the budget comes up to it
            geometrically over the first third of the trials.
        step: Added to all widths after the first trial; parity mode only.
        min_width: Smallest width; None: one step of the group and at least 2, in parity mode 16. Weights cannot be
            carried on from a group of one channel.
        max_width: Largest width; None: none, in parity mode 256.
        metric: ``qc``, ``new_qc``, ``rank`` or ``knowledge_gain``.
        transfer: How a trial gets the weights of the one before: ``net2wider``, ``svd`` or ``fresh`` (not at all);
            None: ``net2wider``, in parity mode ``svd``; rule ``response`` compares trials, so there it is ``fresh``.
        temperature: Of annealing at the beginning, in units of the standard error of the scores' difference; it falls
            linearly. Corrected mode only.
        spread: A width may be so many times what one common ratio of the start would give, or one over it; corrected
            mode only. None: 4, with rule ``response`` 3.
    """

    mode: Mode = "corrected"
    rule: Rule | None = None
    trials: int = Field(36, ge=1)
    trial_epochs: int = Field(2, ge=1)
    gamma: float = Field(0.8, ge=0, lt=1)
    start: Literal["tiny", "given"] | Annotated[int, Field(ge=1)] | None = None
    step: int = Field(16, ge=1)
    min_width: int | None = Field(None, ge=1)
    max_width: int | None = Field(None, ge=1)
    metric: Metric = "qc"
    transfer: Transfer | None = None
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    spread: float | None = Field(None, ge=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _together(self) -> ChannelOptions:
        if self.min_width is not None and self.max_width is not None and self.min_width > self.max_width:
            raise ConvwrightError(
                f"min_width={self.min_width} is above max_width={self.max_width}; give a smaller min_width"
            )
        if self.rule == "response" and (self.mode == "parity" or self.transfer not in (None, "fresh")):
            raise ConvwrightError(
                "rule='response' compares trials that are trained alike from new weights: it is of mode 'corrected', "
                "with transfer 'fresh'"
            )
        return self


@register("channel-search")
class ChannelSearch(Scripted):
    """Trials of a few epochs, each with the weights of the one before; after each the widths answer what was seen.

    What is seen is a quality of the kernels that write and read each channel group: how many of their singular values
    are signal, and how alike these are (``metric``). Then the chosen widths are trained, beside the untouched network.

    ``corrected`` (ours): a group of width w whose quality is q times the mean over groups needs a share in proportion
    to w * q; an exponential average of that pulls the widths, and after every update all of them are scaled to the
    budget exactly. So qualities set the proportions, the budget sets the size, and gamma sets neither. Each step
    follows a part of the pull that falls linearly over the trials. With ``rule="annealing"`` widths are also shaken, in
    proportion to the pull, and a trial that loses against the last accepted one is accepted with Metropolis'
    probability, else the search goes back. What is annealed is the validation ``score``: on the budget all trials cost
    the same, so it compares like with like, and it is what the result is judged by, while the network's ``quality``
    can be raised by narrowing what is wide and has not been shown to mean accuracy. A child has been trained longer
    than the trial it is compared with, so a rejection means that its widths lost in spite of that. With
    ``rule="response"`` accuracy alone decides: all trials begin with new weights, their accuracies are fitted as a
    function of the widths, and the next trial goes where the fit is most promising (see `width_response`); qualities
    are only recorded.

    ``parity``: the published code. All groups begin with 16 channels and get 16 more; from then on a momentum that is
    not normalised, ``M = gamma * M + max over the epochs``, changes each width by the factor ``1 + M - M_before``,
    rounded to even numbers from 16 to 256. Its "annealing" only adds. The widths with the highest mean momentum from
    trial 6 on are chosen. The size is set by gamma: the limits only decide which widths may be chosen.

    A trial that fails is rejected: the widths of the last accepted one are tried again. Two failures in a row, or no
    quality above 0 in three trials in a row, end the search with what it has.

    Without a budget the limits are the network's own MACs and parameters, in parity mode there are none. Where the
    network comes trained, the two final trainings inherit its weights and take `tune_epochs`; else they have new ones.

    Attributes:
        decisions: What was decided so far, one per trial.

    Raises:
        BudgetError: No widths meet the limits.
        ConvwrightError: No group can change, no convolution writes or reads one, or an option is wrong.

    Examples:
        >>> import convwright as cw
        >>> search = cw.methods.ChannelSearch(cw.read("zoo:mnist-base"), epochs=2, tune_epochs=1, trials=4)
        >>> (first,) = search.ask()
        >>> first.probes, first.weights
        (('channel-quality',), 'fresh')
    """

    Options = ChannelOptions
    options: ChannelOptions
    ranks = True

    def set_up(self) -> None:
        """Choose the first widths, and what answers the trials."""
        arch, limits, given = self.arch, self.limits, self.options
        self.mode, self.metric, parity = given.mode, given.metric, given.mode == "parity"
        self.rule: Rule = given.rule or ("greedy" if parity else "annealing")
        usual: Transfer = "svd" if parity else "fresh" if self.rule == "response" else "net2wider"
        self.transfer: Transfer = given.transfer or usual
        least, most = _PUBLISHED_BOUNDS if parity else (_CARRIED, None)
        self.surface = Surface(
            arch,
            limits if limits is not None else own_costs(arch),
            divisor=1 if parity and self.terms.divisor == "auto" else self.terms.divisor,  # as published
            least=given.min_width if given.min_width is not None else least,
            most=given.max_width if given.max_width is not None else most,
            checked=limits is not None or not parity,
        )
        self.members = members(arch)
        check_measurable(arch, self.members)
        self.untouched = Plan.empty(arch)
        start = given.start or ("tiny" if parity else "given")
        width = TINY if start == "tiny" else start
        first = {f.name: f.rounded(width if isinstance(width, int) else f.size) for f in self.surface.families}
        self.walk = self._walk(first)
        self._base: int | None = None

    def _walk(self, first: Widths) -> Published | OnBudget | Response:
        given, surface, seed = self.options, self.surface, self.terms.seed
        spread = _SPREAD[self.rule] if given.spread is None else given.spread
        if self.rule == "response":
            trends = trends_of(self.arch, surface, self.members)
            return Response(surface, first, trends, trials=given.trials, spread=spread, seed=seed)
        if given.mode == "parity":
            return Published(surface, first, given, self.rule, seed, limited=self.limits is not None)
        return OnBudget(surface, first, given, self.rule, spread, seed)

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """What each trial was and showed: its number, and the fields of a `WidthDecision` as plain data."""
        self.ask()  # decides what can be decided
        names = ("widths", "values", "network", "score", "costs", "accepted", "heat")
        found = [(min(d.trials), d.to_dict()) for d in self.decisions if isinstance(d, WidthDecision)]
        return tuple({"trial": trial, **{name: values[name] for name in names}} for trial, values in found)

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        if not self.terms.epochs:  # it comes trained: judged once, and all others start from there
            (base,) = yield (Candidate(self.untouched, None, 0, self.terms.seed, role="base"),)
            if not base.usable:
                self._note("base", f"nothing to begin with, {base.message}", {base.trial: "the untouched network"})
                return
            self._base = base.trial
        reason = yield from self._trials()
        chosen = self.walk.chosen()
        if chosen is None:
            why = reason or "no widths that were tried meet the limits"
            self._note("channel search, end", f"no final network: {why}")
            return
        yield from self._end(chosen[0], f"{reason}; {chosen[1]}" if reason else chosen[1])

    def _trials(self) -> Generator[Batch, tuple[Evidence, ...], str]:
        """Run the trials; return why they ended before their time, or nothing."""
        failed = silent = 0
        for turn in range(self.options.trials):
            widths = self.walk.widths
            (evidence,) = yield (self._candidate(widths, turn),)
            reading = read_trial(evidence, self.members, self.surface.families, self.metric, self.mode == "parity")
            if reading is None:
                failed += 1
                self.walk.back()
                reason = f"rejected, it failed ({evidence.message}); {_listed(self.surface.sizes(widths))}"
                self._record(turn, evidence, widths, reason)
                if failed == _FAILURES:
                    return f"ended after {turn + 1} trials: {failed} failed in a row, {evidence.message}"
                continue
            failed, silent = 0, 0 if reading.network > 0 else silent + 1
            self._seen(turn, evidence, widths, reading, self.walk.take(turn, reading))
            if silent == _SILENT and self.rule != "response":
                return f"ended after {turn + 1} trials: no kernel had any quality in {silent} trials in a row"
        return ""

    def _candidate(self, widths: Widths, turn: int) -> Candidate:
        plan, seed = self._plan(widths), self.terms.seed + turn
        epochs, probes = self.options.trial_epochs, (_PROBES[self.mode],)
        if self.walk.parent is not None and self.transfer != "fresh":
            return Candidate(plan, self.walk.parent, epochs, seed, probes=probes, weights=self.transfer)
        if self._base is not None and self.mode == "corrected" and self.transfer != "fresh":
            return Candidate(plan, self._base, epochs, seed, probes=probes)  # from the trained network
        return Candidate(plan, None, epochs, seed, probes=probes, weights="fresh")

    def _plan(self, widths: Widths) -> Plan:
        return self.untouched.with_edits(*self.surface.edits(widths))

    def _end(self, widths: Widths, why: str) -> Script:
        """Train the chosen widths, and the untouched network for as long."""
        plan, epochs = self._plan(widths), self.terms.epochs or self.terms.tune_epochs
        made: Literal["inherit", "fresh"] = "fresh" if self.terms.epochs else "inherit"
        final = Candidate(plan, self._base, epochs, self.terms.seed, weights=made)
        baseline = Candidate(self.untouched, self._base, epochs, self.terms.seed, role="baseline")
        evidence, _ = yield (final, baseline)
        words = {evidence.trial: "the chosen widths, trained"}
        costs, use = self.surface.counted(widths), self.surface.use(widths)
        sizes = f"{human(costs['macs'])} MACs, {human(costs['params'], 'params')} parameters"
        used = f" ({use:.2%} of the tightest limit)" if self.limits is not None or self.mode == "corrected" else ""
        told = f"{why}: {_listed(self.surface.sizes(widths))}; {sizes}{used}"
        self._final = evidence.trial if evidence.usable else None
        failed = f"its training failed, {evidence.message}"
        result = f"{evidence.metric.name} {evidence.shown}" if evidence.usable else failed
        self._note("channel search, end", f"{told}; {result}", words, self._final)

    # ------------------------------------------------------------------ what is recorded

    def _seen(self, turn: int, evidence: Evidence, widths: Widths, reading: Reading, verdict: Verdict) -> None:
        parts = [
            verdict.words,
            f"{self.metric} of the network {reading.network:.4f}",
            f"{evidence.metric.name} {evidence.judged}",
            *reading.remarks,
            _listed(self.surface.sizes(widths)),
            self._outlook(widths),
        ]
        self._record(turn, evidence, widths, "; ".join(parts), reading, verdict)

    def _record(
        self,
        turn: int,
        evidence: Evidence,
        widths: Widths,
        reason: str,
        reading: Reading | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        accepted, sizes = verdict is not None and verdict.accepted, self.surface.sizes(widths)
        decision = WidthDecision(
            phase=f"channel search, trial {turn + 1} of {self.options.trials}",
            trials={evidence.trial: f"widths {min(sizes.values())} to {max(sizes.values())}"},
            kept=evidence.trial if accepted else None,
            reason=reason,
            widths=sizes,
            values=dict(reading.groups) if reading is not None else {},
            network=reading.network if reading is not None else None,
            score=evidence.score if evidence.usable and math.isfinite(evidence.score) else None,
            costs=self.surface.counted(widths),
            accepted=accepted,
            heat=verdict.heat if verdict is not None else 0.0,
        )
        self.decisions = (*self.decisions, decision)

    def _outlook(self, widths: Widths) -> str:
        ahead = self.walk.widths
        changes = sorted(
            (n for n in ahead if ahead[n] != widths[n]), key=lambda n: -abs(math.log(ahead[n] / widths[n]))
        )
        if not changes:
            return "the widths stay"
        shown = ", ".join(f"{name} {widths[name]} to {ahead[name]}" for name in changes[:_SHOWN])
        return f"next {shown}" + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")


def _listed(sizes: Mapping[str, int]) -> str:
    return f"widths {' '.join(map(str, sizes.values()))}"
