"""The baselines that every search method must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convwright.edits import Plan
from convwright.methods.method import Candidate, Evidence, register
from convwright.methods.uniform_widths import uniform_widths

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits


# Until there is a method that chooses among methods, the baseline is what it would have to beat.
@register("auto")
@register("uniform")
class Uniform:
    """One ratio for all widths, channels by importance, then fine-tuning.

    Asks for the untouched network first. Then, side by side and for the same number of epochs: the
    untouched network trained further, which is what the result is compared with, and the network whose
    free groups are all scaled by the largest ratio that meets all limits. A budget above the
    network's own costs scales up.

    Args:
        arch: The network.
        limits: The budget in numbers.
        epochs: Epochs of the first training; 0 if the network comes trained.
        tune_epochs: Epochs of the two trainings after it.
        seed: Of the trainings.
        divisor: Widths are rounded to multiples of this.

    Raises:
        BudgetError: No ratio meets the limits.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: Limits,
        *,
        epochs: int,
        tune_epochs: int,
        seed: int = 0,
        divisor: int = 1,
    ) -> None:
        self.limits = limits
        self.told: dict[int, Evidence] = {}
        untouched = Plan.empty(arch)
        narrowed = untouched.with_edits(*uniform_widths(arch, limits, divisor))
        base = Candidate(untouched, None, epochs, seed, role="base")
        # Another seed than the base's, so that the second training sees its images in a new order.
        again = Candidate(untouched, 0, tune_epochs, seed + 1, role="baseline")
        self.batches = ((base,), (again, Candidate(narrowed, 0, tune_epochs, seed + 1)))

    def ask(self) -> tuple[Candidate, ...]:
        """Return the base, then baseline and narrowed network, then nothing."""
        if self._base_failed:
            return ()
        number = 0
        for batch in self.batches:
            numbered = enumerate(batch, start=number)
            if open_ones := tuple(c for n, c in numbered if n not in self.told):
                return open_ones
            number += len(batch)
        return ()

    def tell(self, evidence: Evidence) -> None:
        """Note the evidence."""
        self.told[evidence.trial] = evidence

    def best(self) -> Evidence | None:
        """Return the scaled network's trial once it is trained."""
        found = self.told.get(2)
        return found if found is not None and found.usable and self.limits.met(found.costs) else None

    @property
    def _base_failed(self) -> bool:
        return 0 in self.told and not self.told[0].usable
