"""Latency in a run: measured before the search, estimated during it, measured again for the proof.

Methods read no clock. What is measured here goes into the limits as a function of the widths, and into the run
directory, so that a run that is continued decides as it did.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.cost.budget import Choice, Limits, Term, Widths, human
from convwright.cost.latency import Comparison, Latency, compare_latency, measure_latency, ready
from convwright.cost.latency_designs import surface_of
from convwright.cost.latency_model import LatencyModel
from convwright.cost.latency_operators import operator_calls
from convwright.cost.latency_surface import LatencySurface
from convwright.cost.latency_table import LatencyTable, as_entries, as_spreads
from convwright.cost.runtimes import RunnableProgram, Target, installed
from convwright.edits import Plan, Width
from convwright.edits.constraints import Divisor, DivisorLike
from convwright.errors import BudgetError, ConvwrightError, RunError
from convwright.methods import Evidence
from convwright.methods.shared.uniform_widths import solved, uniform_widths
from convwright.runs.directory.files import read_json, write_json
from convwright.runs.directory.study import FORMAT as RUN
from convwright.runs.evaluate import reshaped
from convwright.runs.loop import Say

MARGIN = 0.05  # of a limit on latency, left free by the search: two measurements of one network differ by some percent
PROOFS = 3  # measurements of a result over its limit, until it is within: other work on the machine only adds time
_JOURNAL = "latency.json"
_FORMAT = "convwright latency of a run"


@dataclass(frozen=True, eq=False)
class RunLatency:
    """What a run knows of its network's latency.

    Attributes:
        model: estimates it for widths; holds the network, its present latency, and the times of operators.
        rounds: how it was calibrated.
        ratios: the measured times of networks over the untouched one's, by what they run, as of `fingerprint`.
        say: told what was measured.
        target: what runs the networks.
    """

    model: LatencyModel
    rounds: tuple[Round, ...] = field(default=())
    ratios: dict[str, float] = field(default_factory=dict)
    say: Say = print
    target: Target = Target("eager")  # noqa: RUF009 - frozen
    _fitted: dict[str, int] = field(default_factory=dict)  # networks chosen by a corrected estimate -> nanoseconds
    _ready: list[RunnableProgram] = field(default_factory=list)  # the untouched network on the target

    @property
    def arch(self) -> Architecture:
        """The network."""
        return self.model.arch

    @property
    def present(self) -> int:
        """The network's latency in nanoseconds."""
        return self.model.whole.nanoseconds

    def aimed(self, limits: Limits) -> Limits:
        """Return the limits that a search gets: less by the margin, with the estimate."""
        aims = {**limits.limits, "latency": round(limits.limits["latency"] * (1 - MARGIN))}
        return Limits(aims, {"latency": self.model}, {"latency": self.model.nanoseconds_of}, self.fitting)

    def fitting(self, limits: Limits, network: Architecture, choose: Choice) -> Limits:
        """Return limits for another network than the untouched one; see `Limits.fitted`.

        Raises:
            BudgetError: what is chosen takes too long whenever it is measured.
        """
        most = limits.limits["latency"]
        aim = round(most * (1 - MARGIN / 2))

        def within(model: LatencyModel) -> Limits:
            return replace(limits, limits={**limits.limits, "latency": aim}, estimates={"latency": model})

        course = Calibration(
            self.model.of_network(network), most, lambda model: choose(within(model)), self, line=False
        )
        course.run(lambda one: None)
        times = [each.measured for each in course.rounds]
        self.say(
            f"latency of a design with {len(network.layers)} layers: {human(times[-1], 'latency')} measured in round "
            f"{len(times)}, {human(most, 'latency')} allowed"
        )
        if course.found is None:
            least = human(min(times), "latency")
            raise BudgetError(f"measured it takes {least} of {human(most, 'latency')}, at the fastest widths tried")
        best, chosen = course.found
        self._fitted[fingerprint(chosen)] = best.measured
        return within(course.model)

    def estimate(self, plan: Plan) -> int:
        """Return the estimate of the network that a plan makes, in nanoseconds; a network of `fitting` was measured."""
        if not plan.edits:
            return self.present
        widths = [edit for edit in plan.edits if isinstance(edit, Width)]
        others = len(widths) < len(plan.edits)
        if others or self._fitted:
            network = reshaped(self.arch, plan)
            if (measured := self._fitted.get(fingerprint(network))) is not None:
                return measured
            if others:
                return self.model.nanoseconds_of(network)
        return self.model.nanoseconds(solved(self.arch, widths))

    def completed(self, evidence: Evidence) -> Evidence:
        """Return evidence with an estimate of the latency among the costs."""
        if not evidence.usable:
            return evidence
        return replace(evidence, costs={**evidence.costs, "latency": self.estimate(evidence.candidate.plan)})

    def ready(self, limits: Limits, divisor: DivisorLike, beyond_widths: bool) -> RunLatency:
        """Return what is known once the estimate is corrected; where a run is continued, it is.

        Args:
            limits: The budget in numbers.
            divisor: Widths are rounded to multiples of this.
            beyond_widths: Whether the method changes more than widths; its designs are then measured one by one.

        Raises:
            BudgetError: No common ratio of widths meets the limits, and the method changes nothing else.
        """
        if self.rounds:
            return self
        # Corrected where it matters: on networks that just meet the limits. Half of the margin is left for the proof.
        aimed, most = self.aimed(limits), round(limits.limits["latency"] * (1 - MARGIN / 2))

        def choose(model: LatencyModel) -> tuple[Architecture, Widths]:
            return narrowed(self.arch, replace(aimed, estimates={"latency": model}), divisor)

        def tell(one: Round) -> None:
            self.say(
                f"latency, calibration {len(course.rounds)}: {one.edits} groups changed, estimated "
                f"{human(one.estimate, 'latency')}, measured {human(one.measured, 'latency')}"
            )

        course = Calibration(self.model, most, choose, self, line=True)
        try:
            course.run(tell)
        except BudgetError as error:
            if not beyond_widths:
                raise
            self.say(f"latency: widths alone do not do it ({error}); each design is measured")
        return replace(self, model=course.model, rounds=course.rounds)

    def compare(self, before: Architecture, after: Architecture) -> Comparison:
        """Measure two networks in turns, each on its own example input, where that lies."""
        return compare_latency({"before": self._placed(before), "after": self._placed(after)}, backend=self.target)

    def _placed(self, arch: Architecture) -> tuple[nn.Module | RunnableProgram, Tensor]:
        """Return what is measured; the untouched network is made ready for its runtime once."""
        example = arch.example_input
        if arch is not self.arch:
            return _placed(arch.model, example), example
        if not self._ready:
            self._ready.append(ready("the network", _placed(arch.model, example), example, self.target))
        return self._ready[0], example

    def divisor(self, given: DivisorLike) -> DivisorLike:
        """Return what widths are multiples of: for ``auto`` at most the runtime's own step, where it is known."""
        surface = self.model.surface
        return Divisor(most=surface.step) if given == "auto" and surface is not None and surface.step > 1 else given

    def proved(self, term: Term, before: Architecture, after: Architecture) -> tuple[Comparison, dict[str, Any]]:
        """Measure the untouched network and a result, anew while the result is over its limit.

        Returns:
            What was measured last, and that judged as `judged_latency` does, with their number where there were more.
        """
        for count in range(1, PROOFS + 1):
            times = self.compare(before, after)
            judged = judged_latency(term, times) | ({"measurements": count} if count > 1 else {})
            if judged["met"]:
                break
            taken, most = (human(judged[name], "latency") for name in ("measured", "limit"))
            self.say(f"latency of the result, measurement {count} of at most {PROOFS}: {taken}, {most} allowed")
        return times, judged

    def ratio(self, network: Architecture, when: str = "") -> float:
        """Return a network's time over the untouched one's, measured in turns; once for what runs the same."""
        key = fingerprint(network) + when
        if key not in self.ratios:
            self.ratios[key] = self.compare(self.arch, network).ratios["after"].median
            self.model.table.keep(self.model.table.used)
        return self.ratios[key]

    def summary(self) -> dict[str, Any]:
        """Return what was measured of whole networks before the search, as plain JSON values."""
        model, rounds = self.model, [asdict(done) for done in self.rounds]
        numbers = {"calibration": model.calibration, "fixed": model.fixed}
        kernels = {} if model.surface is None else {"step": model.surface.step, "error": model.surface.error}
        return {"whole": model.whole.as_dict(), **numbers, **kernels, "rounds": rounds, "margin": MARGIN}

    def as_dict(self) -> dict[str, Any]:
        """Return all that decisions rest on, as plain JSON values."""
        surface = {} if self.model.surface is None else {"surface": self.model.surface.as_dict()}
        return {**self.summary(), **self._measured(), **surface}

    def _measured(self) -> dict[str, Any]:
        return {"operators": as_entries(self.model.table.used), "ratios": dict(self.ratios)}

    def keep_in(self, folder: Path) -> None:
        """Write what is measured from now on into the run directory, before anything is decided on it."""

        def keep(*_: object) -> None:
            write_json(folder / _JOURNAL, {"format": _FORMAT, **self._measured()})

        self.model.table.keep = keep


def narrowed(network: Architecture, limits: Limits, divisor: DivisorLike) -> tuple[Architecture, Widths]:
    """Return a network with the widest widths of one ratio within limits, and these widths."""
    edits = uniform_widths(network, limits, divisor)
    return reshaped(network, Plan.empty(network).with_edits(*edits)), solved(network, edits)


def fingerprint(network: Architecture) -> str:
    """Return what a network runs, shortened: equal operators on equal shapes in equal order take equally long."""
    return hashlib.sha256("\n".join(call.key for call in operator_calls(network)).encode()).hexdigest()[:16]


def measured_latency(arch: Architecture, say: Say, asked: Target | None = None) -> RunLatency:
    """Measure a network and its layers or operators.

    Args:
        arch: The network.
        say: Told what is measured.
        asked: What runs it; None: the fastest runtime that is installed.

    Raises:
        ConvwrightError: If it does not run there.
    """
    target, whole = _fastest(arch, say, (asked,) if asked is not None else installed(arch.example_input.device))
    low, high = (human(round(1e9 * t), "latency") for t in (whole.lower, whole.upper))
    say(
        f"latency: {human(whole.nanoseconds, 'latency')} ({low} to {high}) on {target}, {whole.device}, with "
        f"{whole.threads} threads"
    )
    surface = surface_of(arch, target, partial(_with_widths, arch))
    model = LatencyModel.of(arch, LatencyTable(arch.example_input.device), whole, surface=surface)
    if surface is None:
        say(f"latency: its operators alone, run by PyTorch, make {1 / model.calibration:.0%} of it")
    else:
        say(
            f"latency: fitted as a function of the widths to measured networks, median error {surface.error:.1%}; "
            + (f"widths that are multiples of {surface.step} are fast" if surface.step > 1 else "all widths are alike")
        )
    return RunLatency(model, say=say, target=target)


def _fastest(arch: Architecture, say: Say, targets: Sequence[Target]) -> tuple[Target, Latency]:
    """Return the target on which a network takes the least time, and that time; leave out those that refuse it."""
    found: dict[Target, Latency] = {}
    for target in targets:
        try:
            model = _placed(arch.model, arch.example_input)
            found[target] = measure_latency(model, arch.example_input, backend=target)
        except ConvwrightError as error:
            if target is targets[-1] and not found:
                raise
            say(f"latency: not on {target}: {error}")
    best = min(found, key=lambda each: found[each].median)
    others = [f"{each} {human(one.nanoseconds, 'latency')}" for each, one in found.items() if each is not best]
    if others:
        say(f"latency: {best} is the fastest runtime installed (others: {', '.join(others)}); latency[NAME] names one")
    return best, found[best]


def latency_of(arch: Architecture, folder: Path, say: Say, asked: Target | None = None) -> RunLatency:
    """Return what the run in a folder measured of its network, so that it decides as it did; else measure it.

    Args:
        arch: The network.
        folder: The run directory.
        say: Told what is measured from now on.
        asked: What runs the network; None: what the run chose, else the fastest runtime that is installed.

    Raises:
        ConvwrightError: The network does not run where its example input lies.
        RunError: What is recorded is damaged.
    """
    settled = read_json(folder / "run.json", RUN).get("settled") if (folder / "run.json").is_file() else None
    if not isinstance(settled, dict) or "latency" not in settled:
        return measured_latency(arch, say, asked)
    content = settled["latency"]  # as of `RunLatency.as_dict`
    try:
        records = [content]
        if (folder / _JOURNAL).is_file():
            records.append(read_json(folder / _JOURNAL, _FORMAT))
        known = {key: time for each in records for key, time in as_spreads(each["operators"]).items()}
        ratios = {key: float(ratio) for each in records for key, ratio in each.get("ratios", {}).items()}
        table = LatencyTable(arch.example_input.device, known=known)
        surface = LatencySurface.from_dict(content["surface"]) if "surface" in content else None
        whole = Latency(**content["whole"])
        model = LatencyModel.of(arch, table, whole, float(content["calibration"]), surface)
        model = model.calibrated(model.calibration, float(content.get("fixed", 0.0)))
        table.used |= known
        rounds = tuple(Round(**done) for done in content["rounds"])
        return RunLatency(model, rounds, ratios, say, asked or Target.of(whole.backend))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: damaged, its latencies cannot be read ({error}); start anew") from error


def _with_widths(arch: Architecture, widths: Widths) -> Architecture:
    changed = [Width(name, size) for name, size in widths.items() if arch.channels.group(name).size != size]
    return arch.apply(*changed, verify=False)


def _placed(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a network where the example input lies: a run may train it elsewhere."""
    return copy.deepcopy(model).to(example.device)


def judged_latency(term: Term, found: Comparison) -> dict[str, Any]:
    """Hold a measured result against its limit.

    A share refers to the untouched network's latency measured in the same turns, pair by pair, so that both sides bear
    the load that the machine has at that time.

    Returns:
        ``limit``, ``measured`` and ``before`` in nanoseconds, the ``interval`` of the measured median, ``ratio`` to the
        untouched network with its ``ratio_interval``, ``met``.
    """
    before, after, ratio = found.latencies["before"], found.latencies["after"], found.ratios["after"]
    limit, taken = term.resolve(before.nanoseconds), after.nanoseconds
    ends = [round(1e9 * after.lower), round(1e9 * after.upper)]
    if term.relative:
        taken, *ends = (round(each * before.nanoseconds) for each in (ratio.median, ratio.lower, ratio.upper))
    return {
        "limit": limit,
        "measured": taken,
        "interval": ends,
        "before": before.nanoseconds,
        "ratio": ratio.median,
        "ratio_interval": [ratio.lower, ratio.upper],
        "met": taken <= limit,
    }


ROUNDS = 4  # at most
_CLOSE = 0.95  # share of what is allowed from which a network uses the budget well enough


@dataclass(frozen=True)
class Round:
    """One calibration: a network chosen by the estimate, built and measured beside the untouched one.

    Attributes:
        edits: number of changed groups.
        estimate: nanoseconds, of the chosen network.
        measured: nanoseconds: the untouched network's latency times the measured ratio.
        ratio: its time over the untouched network's, measured in turns.
        calibration: what the estimate was made with.
        fixed: likewise, seconds.
    """

    edits: int
    estimate: int
    measured: int
    ratio: float
    calibration: float
    fixed: float = 0.0


@dataclass(eq=False)
class Calibration:
    """Corrects an estimate.

    Attributes:
        model: The estimate so far; in the end the one whose choice used most of what is allowed without taking longer.
        most: Nanoseconds that what is chosen may take when it is measured.
        choose: Chooses widths by a model's estimate; returns the network with these, and the widths.
        latency: Measures a network: its time over the untouched network's.
        line: Whether the model's network was measured as it is, which is a first point of the line.
        rounds: What was measured.
        found: The round of that choice, and the network; None where all took longer.
    """

    model: LatencyModel
    most: int
    choose: Callable[[LatencyModel], tuple[Architecture, Mapping[str, int]]]
    latency: RunLatency
    line: bool
    rounds: tuple[Round, ...] = ()
    found: tuple[Round, Architecture] | None = None

    def run(self, tell: Callable[[Round], object]) -> None:
        """Correct the model until what is chosen by it takes no longer than it may, and uses that.

        Args:
            tell: Called with each round.

        Raises:
            BudgetError: By the estimate no widths meet the limits; the model knows what was measured before.
        """
        for _ in range(ROUNDS):
            network, widths = self.choose(self.model)
            ratio, model = self.latency.ratio(network), self.model
            changed = sum(widths.get(group.name, group.size) != group.size for group in model.arch.free_groups)
            measured = max(1, round(ratio * self.latency.present))
            done = Round(changed, model.nanoseconds(widths), measured, ratio, model.calibration, model.fixed)
            self.rounds = (*self.rounds, done)
            tell(done)
            if done.measured <= self.most:
                if done.measured >= _CLOSE * self.most or done.estimate < _CLOSE * self.most:
                    self.found = done, network  # it uses the budget, or another limit keeps it from doing so
                    return
                if self.found is None or done.measured > self.found[0].measured:
                    self.found = done, network
            self.model = self._corrected(done)
        if self.found is not None:
            best, _ = self.found
            self.model = self.model.calibrated(best.calibration, best.fixed)

    def _corrected(self, done: Round) -> LatencyModel:
        """Return the model whose line goes through what was measured."""
        whole, after = self.model.whole.median, done.measured / 1e9
        sum_before, sum_after = self.model.sum({}), (done.estimate / 1e9 - done.fixed) / done.calibration
        if self.line and len(self.rounds) == 1 and sum_before != sum_after:
            slope = (whole - after) / (sum_before - sum_after)
            if slope > 0:  # else the machine's noise is larger than what the widths change
                return self.model.calibrated(slope, after - slope * sum_after)
        return self.model.calibrated(done.calibration, done.fixed + (done.measured - done.estimate) / 1e9)
