"""Methods that decide without evidence: everything they propose is known before the first training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convwright.edits import Edit, Plan
from convwright.methods.base import Candidate, Decision, Evidence, Method

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits


@dataclass(frozen=True)
class Proposal:
    """A changed network: what it is, in words, and the edits that lead to it."""

    words: str
    edits: tuple[Edit, ...]


class Proposals(Method):
    """Trains the untouched network, then it and all proposals for as long, with its weights.

    Asks for the untouched network first. Then, side by side and for the same number of epochs: the untouched
    network trained further, which is what the result is compared with, and each proposal.

    Args:
        arch: The network.
        limits: The budget in numbers; None: every proposal counts.
        proposals: What is tried.
        epochs: Epochs of the first training; 0 if the network comes trained.
        tune_epochs: Epochs of the trainings after it.
        seed: Of the trainings.

    Attributes:
        told: The evidence so far, by trial.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: Limits | None,
        proposals: Sequence[Proposal],
        *,
        epochs: int,
        tune_epochs: int,
        seed: int,
    ) -> None:
        self.limits = limits
        self.proposals = tuple(proposals)
        self.results: dict[int, Evidence] = {}
        untouched = Plan.empty(arch)
        base = Candidate(untouched, None, epochs, seed, role="base")
        # Another seed than the base's, so that the second training sees its images in a new order.
        again = Candidate(untouched, 0, tune_epochs, seed + 1, role="baseline")
        plans = [untouched.with_edits(*proposal.edits) for proposal in self.proposals]
        changed = [Candidate(plan, 0, tune_epochs, seed + 1) for plan in plans]
        self.batches = ((base,), (again, *changed))

    def ask(self) -> tuple[Candidate, ...]:
        """Return the base, then the baseline and the proposals, then nothing."""
        if 0 in self.results and not self.results[0].usable:
            return ()
        number = 0
        for batch in self.batches:
            numbered = enumerate(batch, start=number)
            if open_ones := tuple(c for n, c in numbered if n not in self.results):
                return open_ones
            number += len(batch)
        return ()

    def tell(self, evidence: Evidence) -> None:
        """Note the evidence."""
        self.results[evidence.trial] = evidence

    def best(self) -> Evidence | None:
        """Return the best proposal that is trained and meets the limits; of equal ones the first."""
        trained = [
            self.results[n] for n in range(2, 2 + len(self.proposals)) if n in self.results and self.results[n].usable
        ]
        meeting = [e for e in trained if self.limits is None or self.limits.met(e.costs)]
        return max(meeting, key=lambda e: e.score, default=None)


class OneProposal(Proposals):
    """A method whose decision is known before any training: at most one proposal, told as a decision.

    Args:
        arch: The network.
        limits: The budget in numbers; None: the proposal counts in any case.
        proposal: What it decided; without edits nothing is proposed.
        phase: What the decision is called.
        log: The decision in sentences.
        epochs: As for `Proposals`.
        tune_epochs: As for `Proposals`.
        seed: As for `Proposals`.

    Attributes:
        decisions: The decision, as a run records it.
    """

    decisions: tuple[Decision, ...] = ()

    def __init__(
        self,
        arch: Architecture,
        limits: Limits | None,
        proposal: Proposal,
        phase: str,
        log: Sequence[str],
        *,
        epochs: int,
        tune_epochs: int,
        seed: int,
    ) -> None:
        proposals = [proposal] if proposal.edits else []
        super().__init__(arch, limits, proposals, epochs=epochs, tune_epochs=tune_epochs, seed=seed)
        self.decisions = (Decision(phase, {2: proposal.words}, 2 if proposals else None, " ".join(log)),)
