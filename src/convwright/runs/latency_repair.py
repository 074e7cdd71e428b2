"""Final networks of a search are measured before they are trained, and those that take too long lose a few channels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from convwright.cost.budget import Limits, Widths, human
from convwright.edits import Plan, Width
from convwright.edits.transfer import width_edits
from convwright.errors import BudgetError, EditError
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.base import WrappedMethod
from convwright.methods.shared.uniform_widths import uniform_widths
from convwright.runs.evaluate import reshaped
from convwright.runs.latency import RunLatency, solved

if TYPE_CHECKING:
    from convwright.architecture import Architecture


class FinalsInTime(WrappedMethod):
    """A method whose final networks keep the limit on latency when they are measured, not only by its estimate.

    Final is what is asked for in one batch with a baseline: no other network begins with it. The method does not know.
    What was measured is in the run directory, so a resumed run asks for the same.

    Args:
        method: The method.
        latency: Measures.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this.
    """

    def __init__(self, method: Method, latency: RunLatency, limits: Limits, divisor: int) -> None:
        super().__init__(method)
        self._repair = Repair(latency, limits, divisor)
        self._told: list[Evidence] = []  # as the run has it
        self._final: set[int] = set()
        self._asked: dict[int, tuple[Candidate, Candidate]] = {}  # final ones: of the method, and as they are trained

    def ask(self) -> tuple[Candidate, ...]:
        """Return the method's next batch, final networks narrowed where they take too long."""
        batch, first = self.method.ask(), len(self._told)
        if any(candidate.role == "baseline" for candidate in batch):
            # By number, since the rest of a batch that was cut by the time is asked for again by itself.
            self._final.update(range(first, first + len(batch)))
        return tuple(self._in_time(number, candidate) for number, candidate in enumerate(batch, start=first))

    def _in_time(self, number: int, candidate: Candidate) -> Candidate:
        if number not in self._final or candidate.role != "candidate":
            return candidate
        if number not in self._asked:
            parent = candidate.parent
            kept = 0 if parent is None else len(self._told[parent].candidate.plan.edits)
            plan = self._repair.repaired(candidate.plan, 0 if candidate.weights == "fresh" else kept)
            self._asked[number] = candidate, replace(candidate, plan=plan)
        return self._asked[number][1]

    def tell(self, evidence: Evidence) -> None:
        """Pass it on as the answer to what the method asked for."""
        self._told.append(evidence)
        asked, _ = self._asked.get(evidence.trial, (evidence.candidate, None))
        self.method.tell(replace(evidence, candidate=asked))

    def best(self) -> Evidence | None:
        """Return the method's best trial, as it was trained."""
        best = self.method.best()
        return None if best is None else self._told[best.trial]


class Repair:
    """Narrows networks that take too long when they are measured."""

    def __init__(self, latency: RunLatency, limits: Limits, divisor: int) -> None:
        self.latency, self.limits, self.divisor = latency, limits, divisor

    def repaired(self, plan: Plan, kept: int) -> Plan:
        """Return a plan whose network keeps the limit: the same one where it does, or where no widths would.

        Args:
            plan: From the run's network.
            kept: So many edits stay as they are: those of the network that the weights come from.
        """
        say, most = self.latency.say, self.limits.limits["latency"]
        network = reshaped(self.latency.arch, plan)
        # Anew, though the calibration may have measured it: that was one measurement, before the search.
        taken = round(self.latency.ratio(network, ", final") * self.latency.present)
        if taken <= most:
            return plan
        both = f"{human(taken, 'latency')} when it is measured, {human(most, 'latency')} allowed"
        while kept < len(plan.edits) and not all(isinstance(edit, Width) for edit in plan.edits[kept:]):
            kept += 1
        start = replace(plan, edits=plan.edits[:kept])
        try:
            narrowed = self._narrowed(network)
            edits, changed = width_edits(reshaped(self.latency.arch, start), narrowed), width_edits(network, narrowed)
        except (BudgetError, EditError) as error:
            say(f"latency: a final network takes {both}; it stays as it is, no widths keep that: {error}")
            return plan
        say(f"latency: a final network takes {both}; {len(changed)} groups lose channels before it is trained")
        return start.with_edits(*edits)

    def _narrowed(self, network: Architecture) -> Architecture:
        """Return the network with the widest widths of one ratio that keep the limits when they are measured.

        Raises:
            BudgetError: There are none.
        """

        def choose(within: Limits) -> tuple[Architecture, Widths]:
            edits = uniform_widths(network, within, self.divisor)
            return reshaped(network, Plan.empty(network).with_edits(*edits)), solved(network, edits)

        limits = self.latency.aimed(self.limits)
        return choose(limits.fitted(network, choose))[0]
