"""Methods that a run rewrites: final networks are measured before they are trained, baselines may be only judged.

Final networks that take too long lose a few channels. Trials keep their numbers, and the method does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convwright.cost.budget import Limits, human
from convwright.edits import Plan, Width
from convwright.edits.constraints import DivisorLike
from convwright.edits.transfer import width_edits
from convwright.errors import BudgetError, EditError, RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.base import RewritingMethod
from convwright.runs.evaluate import reshaped
from convwright.runs.latency import PROOFS, RunLatency, narrowed


class FinalsInTime(RewritingMethod):
    """A method whose final networks keep the limit on latency when they are measured, not only by its estimate.

    What was measured is in the run directory, so a resumed run asks for the same.

    Args:
        method: The method.
        latency: Measures.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this.
    """

    def __init__(self, method: Method, latency: RunLatency, limits: Limits, divisor: DivisorLike) -> None:
        super().__init__(method)
        self.latency, self.limits, self.divisor = latency, limits, divisor

    def rewritten(self, candidate: Candidate, final: bool) -> Candidate:
        """Return the candidate, a final one narrowed where it takes too long."""
        if candidate.role != "candidate":
            return candidate
        if not final:  # asked for again without its training, a final network stays as it was carried out
            finals = (pair for number, pair in self._rewritten.items() if number in self._final)
            again = next((done.plan for asked, done in finals if asked.plan == candidate.plan), candidate.plan)
            return replace(candidate, plan=again)
        inherits = candidate.parent is not None and candidate.weights != "fresh"
        kept = len(self._told[candidate.parent or 0].candidate.plan.edits) if inherits else 0
        return replace(candidate, plan=self.repaired(candidate.plan, kept))

    def repaired(self, plan: Plan, kept: int) -> Plan:
        """Return a plan whose network keeps the limit: the same one where it does, or where no widths would.

        Args:
            plan: From the run's network.
            kept: So many edits stay as they are: those of the network that the weights come from.
        """
        network, most = reshaped(self.latency.arch, plan), self.limits.limits["latency"]
        # Anew, though the calibration may have measured it: that was one measurement, before the search. And as often
        # as the proof does: channels are not given away for what other work on the machine took.
        for when in (", final", *(f", final {count}" for count in range(2, PROOFS + 1))):
            taken = round(self.latency.ratio(network, when) * self.latency.present)
            if taken <= most:
                return plan
        both = f"{human(taken, 'latency')} when it is measured, {human(most, 'latency')} allowed"
        while not all(isinstance(edit, Width) for edit in plan.edits[kept:]):
            kept += 1
        start = replace(plan, edits=plan.edits[:kept])

        try:  # the widest widths of one ratio that keep the limits when they are measured
            fitted = self.latency.aimed(self.limits).fitted(network, lambda each: narrowed(network, each, self.divisor))
            after, _ = narrowed(network, fitted, self.divisor)
            edits, changed = width_edits(reshaped(self.latency.arch, start), after), width_edits(network, after)
        except (BudgetError, EditError) as error:
            self.latency.say(f"latency: a final network takes {both}; it stays as it is, no widths keep that: {error}")
            return plan
        self.latency.say(f"latency: a final network takes {both}; {len(changed)} groups lose channels before training")
        return start.with_edits(*edits)


class WithoutBaseline(RewritingMethod):
    """A method whose baselines are only judged: with the weights of trial 0, or those that the run was given.

    Args:
        method: The method.
        given: Whether the run was given trained weights.
    """

    def __init__(self, method: Method, given: bool) -> None:
        super().__init__(method)
        self.given = given

    def rewritten(self, candidate: Candidate, final: bool) -> Candidate:
        """Return the candidate, a baseline without its training.

        Raises:
            RunError: No untouched network is trained first, and the run was given no weights.
        """
        if candidate.role != "base" and not self._told and not self.given:
            raise RunError(
                f"--no-baseline: method {self.method.name or type(self.method).__name__} trains every network from new "
                "weights, so nothing would be left to compare the result with; give --weights, or keep the baseline"
            )
        return only_judged(candidate, self._told)


def only_judged(candidate: Candidate, found: Sequence[Evidence]) -> Candidate:
    """Return a baseline without its training, with the weights of the first trial of the untouched network."""
    if candidate.role != "baseline":
        return candidate
    parent = next((evidence.trial for evidence in found if evidence.candidate.role == "base"), None)
    return replace(candidate, parent=parent, epochs=0, weights="inherit", recipe={}, probes=(), stop=None)
