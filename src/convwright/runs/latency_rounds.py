"""An estimate of latency is corrected where it matters: what is chosen by it is built, measured, and chosen anew.

Time is a line in the sum of operators: what calls of operators take beyond their work does not shrink with the widths.
Of the untouched network two points of the line are measured, as it is and with the first widths chosen. Other networks
take their share of the fixed part with their number of calls; then each measurement shifts the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.latency_model import LatencyModel

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
        ratio: Measures a network: its time over the untouched network's.
        untouched: Nanoseconds of that one.
        line: Whether the model's network was measured as it is, which is a first point of the line.
        rounds: What was measured.
        found: The round of that choice, and the network; None where all took longer.
    """

    model: LatencyModel
    most: int
    choose: Callable[[LatencyModel], tuple[Architecture, Mapping[str, int]]]
    ratio: Callable[[Architecture], float]
    untouched: int
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
            done = self._round(network, widths)
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

    def _round(self, network: Architecture, widths: Mapping[str, int]) -> Round:
        model = self.model
        ratio = self.ratio(network)
        changed = sum(widths.get(group.name, group.size) != group.size for group in model.arch.free_groups)
        measured = max(1, round(ratio * self.untouched))
        return Round(changed, model.nanoseconds(widths), measured, ratio, model.calibration, model.fixed)

    def _corrected(self, done: Round) -> LatencyModel:
        """Return the model whose line goes through what was measured."""
        whole, after = self.model.whole.median, done.measured / 1e9
        sum_before, sum_after = self.model.sum({}), (done.estimate / 1e9 - done.fixed) / done.calibration
        if self.line and len(self.rounds) == 1 and sum_before != sum_after:
            slope = (whole - after) / (sum_before - sum_after)
            if slope > 0:  # else the machine's noise is larger than what the widths change
                return self.model.calibrated(slope, after - slope * sum_after)
        return self.model.calibrated(done.calibration, done.fixed + (done.measured - done.estimate) / 1e9)
