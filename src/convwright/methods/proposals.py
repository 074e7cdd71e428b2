"""Methods that decide without evidence: everything they propose is known before the first training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convwright.edits import Edit, Plan
from convwright.methods.base import Candidate
from convwright.methods.script import Script, Scripted


@dataclass(frozen=True)
class Proposal:
    """A changed network: what it is, in words, and the edits that lead to it."""

    words: str
    edits: tuple[Edit, ...]


class Proposals(Scripted):
    """Trains the untouched network, then it and all proposals for as long, with its weights.

    Asks for the untouched network first. Then, side by side and for the same number of epochs: the untouched
    network trained further, which is what the result is compared with, and each proposal. A method calls `propose` or
    `propose_one` in its `set_up`.

    Attributes:
        proposals: What is tried.
        batches: What is asked for.
        decisions: The decision of `propose_one`, as a run records it.
    """

    proposals: tuple[Proposal, ...] = ()
    log = ()  # decisions say it

    def propose(self, *proposals: Proposal) -> None:
        """Set what is tried."""
        self.proposals, terms = proposals, self.terms
        untouched = Plan.empty(self.arch)
        base = Candidate(untouched, None, terms.epochs, terms.seed, role="base")
        # Another seed than the base's, so that the second training sees its images in a new order.
        again = Candidate(untouched, 0, terms.tune_epochs, terms.seed + 1, role="baseline")
        plans = [untouched.with_edits(*proposal.edits) for proposal in proposals]
        changed = [Candidate(plan, 0, terms.tune_epochs, terms.seed + 1) for plan in plans]
        self.batches = ((base,), (again, *changed))

    def propose_one(self, proposal: Proposal, phase: str, log: Sequence[str]) -> None:
        """Set the one network that was decided on, and tell it as a decision.

        Args:
            proposal: What was decided; without edits nothing is tried.
            phase: What the decision is called.
            log: The decision in sentences.
        """
        self.propose(*([proposal] if proposal.edits else []))
        kept = 2 if self.proposals else None
        self._note(phase, " ".join(log), {2: proposal.words}, kept)

    def _run(self) -> Script:
        number, (base,) = 1, (yield self.batches[0])
        while base.usable and number < len(self.batches):
            yield self.batches[number]
            number += 1
