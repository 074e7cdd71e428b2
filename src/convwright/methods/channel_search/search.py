"""Channel search: how wide should each layer be? Short trainings, and a quality of the kernels, decide.

After CONetV2 (Wang et al. 2021). ``mode="parity"`` is the course of its published code, which was read line by line;
``mode="corrected"`` is ours, and keeps to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from convwright.cost.budget import Limits, human
from convwright.edits import Plan
from convwright.errors import ConvwrightError, check_given_counts
from convwright.methods.base import Candidate, Decision, Evidence, register
from convwright.methods.channel_search.readings import Reading, check_measurable, read_trial
from convwright.methods.channel_search.response import Response, trends_of
from convwright.methods.channel_search.walks import Energy, OnBudget, Published, Seen, Verdict, Walk
from convwright.methods.script import Batch, Script, Scripted
from convwright.methods.shared.width_surface import Surface, Widths
from convwright.metrics.quality.channel_quality import members

if TYPE_CHECKING:
    from convwright.architecture import Architecture

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

    Args:
        arch: The network.
        limits: The budget in numbers; None: the network's own MACs and parameters, in parity mode none.
        epochs: Epochs of the final training, of new weights, and of the untouched network's beside it. 0: the network
            comes trained, and both inherit its weights.
        tune_epochs: Epochs of the two final trainings where `epochs` is 0.
        seed: Of draws, new weights and trainings.
        divisor: Widths are rounded to multiples of this.
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
        energy: What is annealed: ``score`` or ``quality``; corrected mode only.
        temperature: At the beginning, in units of the energy's noise (for ``score`` the standard error of the
            difference, for ``quality`` 2 %, a guess); it falls linearly. Corrected mode only.
        spread: A width may be so many times what one common ratio of the start would give, or one over it; corrected
            mode only. None: 4, with rule ``response`` 3.

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

    ranks = True

    def __init__(
        self,
        arch: Architecture,
        limits: Limits | None = None,
        *,
        epochs: int = 1,
        tune_epochs: int = 1,
        seed: int = 0,
        divisor: int = 1,
        mode: Mode = "corrected",
        rule: Rule | None = None,
        trials: int = 36,
        trial_epochs: int = 2,
        gamma: float = 0.8,
        start: Literal["tiny", "given"] | int | None = None,
        step: int = 16,
        min_width: int | None = None,
        max_width: int | None = None,
        metric: Metric = "qc",
        transfer: Transfer | None = None,
        energy: Energy = "score",
        temperature: float = 1.0,
        spread: float | None = None,
    ) -> None:
        parity = mode == "parity"
        rule = rule or ("greedy" if parity else "annealing")
        transfer = transfer or ("svd" if parity else "fresh" if rule == "response" else "net2wider")
        start = start if start is not None else ("tiny" if parity else "given")
        _check_words(mode=(mode, Mode), rule=(rule, Rule), transfer=(transfer, Transfer), energy=(energy, Energy))
        _check_words(metric=(metric, Metric))
        if rule == "response" and (parity or transfer != "fresh"):
            raise ConvwrightError(
                "rule='response' compares trials that are trained alike from new weights: it is of mode 'corrected', "
                "with transfer 'fresh'"
            )
        spread = _SPREAD[rule] if spread is None else spread
        _check_numbers(trials, trial_epochs, gamma, start, step, min_width, max_width, temperature, spread)
        super().__init__(limits)
        self.mode, self.rule, self.transfer, self.metric = mode, rule, transfer, metric
        self.trials, self.trial_epochs = trials, trial_epochs
        self.epochs, self.tune_epochs, self.seed = epochs, tune_epochs, seed
        least, most = _PUBLISHED_BOUNDS if parity else (_CARRIED, None)
        self.surface = Surface(
            arch,
            limits if limits is not None else _own_costs(arch),
            divisor=divisor,
            least=min_width if min_width is not None else least,
            most=max_width if max_width is not None else most,
            checked=limits is not None or not parity,
        )
        self.members = members(arch)
        check_measurable(arch, self.members)
        self.untouched = Plan.empty(arch)
        first = self._first(start)
        self.walk: Walk
        if rule == "response":
            trends = trends_of(arch, self.surface, self.members)
            self.walk = Response(self.surface, first, trends, trials=trials, spread=spread, seed=seed)
        elif parity:
            self.walk = Published(
                self.surface, first, trials=trials, gamma=gamma, rule=rule, step=step, seed=seed,
                limited=limits is not None,
            )  # fmt: skip
        else:
            self.walk = OnBudget(
                self.surface, first, trials=trials, gamma=gamma, rule=rule, energy=energy, heat=temperature,
                spread=spread, seed=seed,
            )  # fmt: skip
        self._base: int | None = None
        self._begin()

    def _first(self, start: Literal["tiny", "given"] | int) -> Widths:
        """Return the first widths by family."""
        if start == "given":
            return {f.name: f.rounded(f.size) for f in self.surface.families}
        width = TINY if start == "tiny" else start
        return {f.name: f.rounded(width) for f in self.surface.families}

    # ------------------------------------------------------------------ what it did

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """What each trial was and showed: its number, and the fields of a `WidthDecision` as plain data."""
        self.ask()  # decides what can be decided
        names = ("widths", "values", "network", "score", "costs", "accepted", "heat")
        found = []
        for decision in self.decisions:
            if isinstance(decision, WidthDecision):
                values = decision.to_dict()
                found.append({"trial": min(decision.trials), **{name: values[name] for name in names}})
        return tuple(found)

    # ------------------------------------------------------------------ the course of the search

    def _run(self) -> Script:
        if not self.epochs:  # it comes trained: judged once, and all others start from there
            (base,) = yield (Candidate(self.untouched, None, 0, self.seed, role="base"),)
            if not base.usable:
                self._note(
                    "base", {base.trial: "the untouched network"}, None, f"nothing to begin with, {base.message}"
                )
                return
            self._base = base.trial
        reason = yield from self._trials()
        chosen = self.walk.chosen()
        if chosen is None:
            why = reason or "no widths that were tried meet the limits"
            self._note("channel search, end", {}, None, f"no final network: {why}")
            return
        yield from self._end(chosen[0], f"{reason}; {chosen[1]}" if reason else chosen[1])

    def _trials(self) -> Generator[Batch, tuple[Evidence, ...], str]:
        """Run the trials; return why they ended before their time, or nothing."""
        failed = silent = 0
        for turn in range(self.trials):
            widths = self.walk.widths
            (evidence,) = yield (self._candidate(widths, turn),)
            reading = read_trial(evidence, self.members, self.surface.families, self.metric, self.mode == "parity")
            if reading is None:
                failed += 1
                self._failed(turn, evidence, widths)
                if failed == _FAILURES:
                    return f"ended after {turn + 1} trials: {failed} failed in a row, {evidence.message}"
                continue
            failed, silent = 0, 0 if reading.network > 0 else silent + 1
            seen = Seen(evidence.trial, turn, reading.families, reading.network, evidence.score, evidence.stderr)
            self._seen(turn, evidence, widths, reading, self.walk.take(seen))
            if silent == _SILENT and self.rule != "response":
                return f"ended after {turn + 1} trials: no kernel had any quality in {silent} trials in a row"
        return ""

    def _candidate(self, widths: Widths, turn: int) -> Candidate:
        plan, seed = self._plan(widths), self.seed + turn
        probes = (_PROBES[self.mode],)
        if self.walk.parent is not None and self.transfer != "fresh":
            return Candidate(plan, self.walk.parent, self.trial_epochs, seed, probes=probes, weights=self.transfer)
        if self._base is not None and self.mode == "corrected" and self.transfer != "fresh":
            return Candidate(plan, self._base, self.trial_epochs, seed, probes=probes)  # from the trained network
        return Candidate(plan, None, self.trial_epochs, seed, probes=probes, weights="fresh")

    def _plan(self, widths: Widths) -> Plan:
        return self.untouched.with_edits(*self.surface.edits(widths))

    def _end(self, widths: Widths, why: str) -> Script:
        """Train the chosen widths, and the untouched network for as long."""
        plan, epochs = self._plan(widths), self.epochs or self.tune_epochs
        made: Literal["inherit", "fresh"] = "fresh" if self.epochs else "inherit"
        final = Candidate(plan, self._base, epochs, self.seed, weights=made)
        baseline = Candidate(self.untouched, self._base, epochs, self.seed, role="baseline")
        evidence, _ = yield (final, baseline)
        words = {evidence.trial: "the chosen widths, trained"}
        costs, use = self.surface.counted(widths), self.surface.use(widths)
        sizes = f"{human(costs['macs'])} MACs, {human(costs['params'], 'params')} parameters"
        used = f" ({use:.2%} of the tightest limit)" if self.limits is not None or self.mode == "corrected" else ""
        told = f"{why}: {_listed(self.surface.sizes(widths))}; {sizes}{used}"
        self._final = evidence.trial if evidence.usable else None
        result = f"accuracy {evidence.score:.2%}" if evidence.usable else f"its training failed, {evidence.message}"
        self._note("channel search, end", words, self._final, f"{told}; {result}")

    # ------------------------------------------------------------------ what is recorded

    def _note(self, phase: str, trials: Mapping[int, str], kept: int | None, reason: str) -> None:
        self.decisions = (*self.decisions, Decision(phase, trials, kept, reason))

    def _failed(self, turn: int, evidence: Evidence, widths: Widths) -> None:
        self.walk.back()
        reason = f"rejected, it failed ({evidence.message}); {_listed(self.surface.sizes(widths))}"
        self._record(turn, evidence, widths, reason)

    def _seen(self, turn: int, evidence: Evidence, widths: Widths, reading: Reading, verdict: Verdict) -> None:
        parts = [
            verdict.words,
            f"{self.metric} of the network {reading.network:.4f}",
            f"accuracy {evidence.score:.2%} ± {evidence.stderr:.2%}",
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
            phase=f"channel search, trial {turn + 1} of {self.trials}",
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
        """Say which widths change most in the trial after."""
        ahead = self.walk.widths
        changes = sorted(
            (n for n in ahead if ahead[n] != widths[n]), key=lambda n: -abs(math.log(ahead[n] / widths[n]))
        )
        if not changes:
            return "the widths stay"
        shown = ", ".join(f"{name} {widths[name]} to {ahead[name]}" for name in changes[:_SHOWN])
        return f"next {shown}" + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")


# ------------------------------------------------------------------ checks and words


def _own_costs(arch: Architecture) -> Limits:
    profile = arch.profile()
    return Limits({"macs": profile.macs, "params": profile.params})


def _listed(sizes: Mapping[str, int]) -> str:
    return f"widths {' '.join(map(str, sizes.values()))}"


def _check_words(**given: tuple[Any, Any]) -> None:
    for name, (value, known) in given.items():
        if value not in get_args(known):
            raise ConvwrightError(f"{name}={value!r} is unknown to channel-search; give {', '.join(get_args(known))}")


def _check_numbers(
    trials: int,
    trial_epochs: int,
    gamma: float,
    start: str | int,
    step: int,
    min_width: int | None,
    max_width: int | None,
    temperature: float,
    spread: float,
) -> None:
    if isinstance(start, str) and start not in ("tiny", "given"):
        raise ConvwrightError(f"start={start!r} is unknown to channel-search; give tiny, given or a number of channels")
    check_given_counts(trials=trials, trial_epochs=trial_epochs, step=step, min_width=min_width)
    check_given_counts(max_width=max_width, start=start if not isinstance(start, str) else None)
    if min_width is not None and max_width is not None and min_width > max_width:
        raise ConvwrightError(f"min_width={min_width} is above max_width={max_width}; give a smaller min_width")
    if not 0 <= gamma < 1:
        raise ConvwrightError(f"gamma={gamma!r} must lie from 0 to below 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConvwrightError(f"temperature={temperature!r} must be 0 or more")
    if not (math.isfinite(spread) and spread >= 1):
        raise ConvwrightError(f"spread={spread!r} must be 1 or more")
