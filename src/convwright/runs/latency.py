"""Latency in a run: measured before the search, estimated during it, measured again for the proof.

Methods read no clock. What is measured here goes into the limits as a function of the widths, and into the run
directory, so that a run that is continued decides as it did.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convwright.cost.budget import Limits, Term, human
from convwright.cost.latency import Comparison, Latency, compare_latency, measure_latency
from convwright.cost.latency_model import LatencyModel
from convwright.cost.latency_table import LatencyTable, as_entries, as_spreads
from convwright.edits import Plan, Width, solve
from convwright.errors import RunError
from convwright.methods import Evidence
from convwright.methods.uniform_widths import uniform_widths
from convwright.runs.evaluate import reshaped
from convwright.runs.files import read_json, write_json
from convwright.runs.search import Say

if TYPE_CHECKING:
    from convwright.architecture import Architecture

MARGIN = 0.05  # of a limit on latency, left free by the search: two measurements of one network differ by some percent
ROUNDS = 4  # of calibration, at most
_CLOSE = 0.9  # share of the aim from which a calibrated network uses the budget well enough
_JOURNAL = "latency.json"
_FORMAT = "convwright latency of a run"


@dataclass(frozen=True)
class Round:
    """One calibration: a network chosen by the estimate, built and measured beside the original.

    Attributes:
        edits: number of changed groups.
        estimate: nanoseconds, of the chosen network.
        measured: nanoseconds: the present latency times the measured ratio.
        ratio: its time over the original's, measured in turns.
        calibration: what the estimate was made with.
    """

    edits: int
    estimate: int
    measured: int
    ratio: float
    calibration: float


@dataclass(frozen=True, eq=False)
class RunLatency:
    """What a run knows of its network's latency.

    Attributes:
        model: estimates it for widths; holds the network, its present latency, and the times of operators.
        rounds: how it was calibrated.
    """

    model: LatencyModel
    rounds: tuple[Round, ...] = field(default=())

    @property
    def arch(self) -> Architecture:
        """The network."""
        return self.model.arch

    @property
    def present(self) -> int:
        """The network's latency in nanoseconds."""
        return self.model.whole.nanoseconds

    # -------------------------------------------------------------- limits

    def aimed(self, limits: Limits) -> Limits:
        """Return the limits that a search gets: less by the margin, with the estimate."""
        aims = {**limits.limits, "latency": round(limits.limits["latency"] * (1 - MARGIN))}
        return Limits(aims, {"latency": self.model.nanoseconds}, {"latency": self.model.nanoseconds_of})

    def estimate(self, plan: Plan) -> int:
        """Return the estimate of the network that a plan makes, in nanoseconds."""
        if not plan.edits:
            return self.present
        widths = [edit for edit in plan.edits if isinstance(edit, Width)]
        if len(widths) == len(plan.edits):
            return self.model.nanoseconds(_solved(self.arch, widths))
        return self.model.nanoseconds_of(reshaped(self.arch, plan))  # other edits make other operators

    def completed(self, evidence: Evidence) -> Evidence:
        """Return evidence with an estimate of the latency among the costs."""
        if not evidence.usable:
            return evidence
        return replace(evidence, costs={**evidence.costs, "latency": self.estimate(evidence.candidate.plan)})

    # -------------------------------------------------------------- calibration

    def calibrated(self, limits: Limits, divisor: int, say: Say) -> RunLatency:
        """Correct the estimate where it matters: on networks that just meet the limits.

        Each round chooses widths by the estimate, builds that network, measures it beside the original and corrects the
        calibration, until what is chosen meets the limit when measured, and uses it. Half of the margin is left for
        the proof.

        Raises:
            BudgetError: if no common ratio of widths meets the limits.
        """
        known, limit = self, round(limits.limits["latency"] * (1 - MARGIN / 2))
        for number in range(1, ROUNDS + 1):
            done = known._round(known.aimed(limits), divisor)
            known = replace(known, rounds=(*known.rounds, done))
            say(
                f"latency, calibration {number}: {done.edits} edits, estimated {human(done.estimate, 'latency')}, "
                f"measured {human(done.measured, 'latency')}"
            )
            if done.measured <= limit and (done.measured >= _CLOSE * limit or done.estimate < _CLOSE * limit):
                return known  # it uses the budget, or another limit keeps it from doing so
            known = replace(known, model=known.model.calibrated(known._corrected(known.aimed(limits))))
        return known._best_of_rounds(limit)

    def _round(self, aimed: Limits, divisor: int) -> Round:
        edits = uniform_widths(self.arch, aimed, divisor)
        plan = Plan.empty(self.arch).with_edits(*edits)
        ratio = self.compare(self.arch, reshaped(self.arch, plan)).ratios["after"].median
        measured = max(1, round(ratio * self.present))
        return Round(len(edits), self.estimate(plan), measured, ratio, self.model.calibration)

    def _corrected(self, aimed: Limits) -> float:
        """Return the calibration that would have been right at the limit.

        Part of the time does not shrink with the widths, so a line is drawn through the last two networks measured (the
        first is the present one), and followed to the aim. Where it leads nowhere, the last network's ratio is taken.
        """
        aim, done = aimed.limits["latency"], self.rounds[-1]
        points = [(1e9 * self.model.sum({}), self.present)]
        points += [(r.estimate / r.calibration, r.measured) for r in self.rounds]
        (sum_before, before), (sum_after, after) = points[-2:]
        slope = (after - before) / (sum_after - sum_before) if sum_after != sum_before else 0.0
        wanted = sum_after + (aim - after) / slope if slope > 0 else 0.0
        return aim / wanted if wanted > 0 else done.calibration * done.measured / done.estimate

    def _best_of_rounds(self, limit: int) -> RunLatency:
        """Return the calibration whose network used most of the limit without breaking it; else the last one."""
        met = [r for r in self.rounds if r.measured <= limit]
        if not met:
            return self
        best = max(met, key=lambda r: r.measured)
        return replace(self, model=self.model.calibrated(best.calibration))

    # -------------------------------------------------------------- measuring

    def compare(self, before: Architecture, after: Architecture) -> Comparison:
        """Measure two networks in turns, where the example input lies."""
        example = self.arch.example_input
        models = {"before": before.model, "after": after.model}
        return compare_latency({name: (_placed(model, example), example) for name, model in models.items()})

    # -------------------------------------------------------------- the record

    def summary(self) -> dict[str, Any]:
        """Return what was measured of whole networks before the search, as plain JSON values."""
        return {
            "whole": self.model.whole.as_dict(),
            "calibration": self.model.calibration,
            "rounds": [asdict(done) for done in self.rounds],
            "margin": MARGIN,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return all that decisions rest on, as plain JSON values."""
        return {**self.summary(), "operators": as_entries(self.model.table.used)}

    def keep_in(self, folder: Path) -> None:
        """Write what is measured from now on into the run directory, before anything is decided on it."""
        self.model.table.keep = lambda used: write_json(
            folder / _JOURNAL, {"format": _FORMAT, "operators": as_entries(used)}
        )


def measured_latency(arch: Architecture, say: Say) -> RunLatency:
    """Measure a network and its operators.

    Raises:
        ConvwrightError: if it does not run where its example input lies.
    """
    example = arch.example_input
    whole = measure_latency(_placed(arch.model, example), example)
    model = LatencyModel.of(arch, LatencyTable(example.device), whole)
    low, high = (human(round(1e9 * t), "latency") for t in (whole.lower, whole.upper))
    say(
        f"latency: {human(whole.nanoseconds, 'latency')} ({low} to {high}) on {whole.device} with {whole.threads} "
        f"threads; its operators alone make {1 / model.calibration:.0%} of it"
    )
    return RunLatency(model)


def recorded_latency(arch: Architecture, content: Mapping[str, Any], folder: Path) -> RunLatency:
    """Restore what a run measured, so that it decides as it did.

    Args:
        arch: The network.
        content: What `RunLatency.as_dict` gave.
        folder: The run directory.

    Raises:
        RunError: It is damaged.
    """
    try:
        known = as_spreads(content["operators"])
        if (folder / _JOURNAL).is_file():
            known |= as_spreads(read_json(folder / _JOURNAL, _FORMAT)["operators"])
        table = LatencyTable(arch.example_input.device, known=known)
        model = LatencyModel.of(arch, table, Latency(**content["whole"]), float(content["calibration"]))
        table.used |= known
        return RunLatency(model, tuple(Round(**done) for done in content["rounds"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: damaged, its latencies cannot be read ({error}); start anew") from error


def _placed(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a network where the example input lies: a run may train it elsewhere."""
    return copy.deepcopy(model).to(example.device)


def _solved(arch: Architecture, edits: list[Width]) -> dict[str, int]:
    """Return the sizes of all free groups under edits, tied ones included."""
    units = solve(arch, edits).units
    return {g.name: int(u) * g.step for g, u in zip(arch.groups, units, strict=True) if not g.frozen}


# ------------------------------------------------------------------ proof


def judged_latency(term: Term, found: Comparison) -> dict[str, Any]:
    """Hold a measured result against its limit.

    A share refers to the untouched network's latency measured in the same turns, so that both sides bear the load that
    the machine has at that time.

    Returns:
        ``limit``, ``measured`` and ``before`` in nanoseconds, the ``interval`` of the measured median, ``ratio`` to the
        untouched network with its ``ratio_interval``, ``met``.
    """
    before, after, ratio = found.latencies["before"], found.latencies["after"], found.ratios["after"]
    limit = term.resolve(before.nanoseconds)
    return {
        "limit": limit,
        "measured": after.nanoseconds,
        "interval": [round(1e9 * after.lower), round(1e9 * after.upper)],
        "before": before.nanoseconds,
        "ratio": ratio.median,
        "ratio_interval": [ratio.lower, ratio.upper],
        "met": after.nanoseconds <= limit,
    }
