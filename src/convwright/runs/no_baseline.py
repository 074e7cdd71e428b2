"""A search whose untouched network is not trained on: the result is compared with it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convwright.errors import RunError
from convwright.methods import Candidate, Evidence, Method
from convwright.methods.base import RewritingMethod


class WithoutBaseline(RewritingMethod):
    """A method whose baselines are only judged: with the weights of trial 0, or those that the run was given.

    Trials keep their numbers, and the method does not know.

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
