"""A search whose untouched network is not trained on: the result is compared with it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.base import WrappedMethod


class WithoutBaseline(WrappedMethod):
    """A method whose baselines are only judged: with the weights of trial 0, or those that the run was given.

    Trials keep their numbers, and the method does not know.

    Args:
        method: The method.
        given: Whether the run was given trained weights.
    """

    def __init__(self, method: Method, given: bool) -> None:
        super().__init__(method)
        self.given = given
        self._asked: list[Candidate] = []  # by number, as the method asked for them
        self._told: list[Evidence] = []  # as the run has them

    def ask(self) -> tuple[Candidate, ...]:
        """Return the method's next batch.

        Raises:
            RunError: It trains no untouched network first, and the run was given no weights.
        """
        batch, first = self.method.ask(), len(self._told)
        if batch and not first and not self.given and not any(candidate.role == "base" for candidate in batch):
            raise RunError(
                f"--no-baseline: method {self.method.name or type(self.method).__name__} trains every network from new "
                "weights, so nothing would be left to compare the result with; give --weights, or keep the baseline"
            )
        self._asked = [*self._asked[:first], *batch]
        return tuple(only_judged(candidate, self._told) for candidate in batch)

    def tell(self, evidence: Evidence) -> None:
        """Pass it on as the answer to what the method asked for."""
        self._told.append(evidence)
        self.method.tell(replace(evidence, candidate=self._asked[evidence.trial]))

    def best(self) -> Evidence | None:
        """Return the method's best trial, as the run has it."""
        best = self.method.best()
        return None if best is None else self._told[best.trial]


def only_judged(candidate: Candidate, found: Sequence[Evidence]) -> Candidate:
    """Return a baseline without its training, with the weights of the first trial of the untouched network."""
    if candidate.role != "baseline":
        return candidate
    parent = next((evidence.trial for evidence in found if evidence.candidate.role == "base"), None)
    return replace(candidate, parent=parent, epochs=0, weights="inherit", recipe={}, probes=(), stop=None)
