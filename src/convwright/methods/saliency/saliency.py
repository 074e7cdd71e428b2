"""The method for trained networks: cut what the loss misses least, in rounds, then fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from convwright.cost.budget import Limits, human
from convwright.cost.cost_model import CostModel
from convwright.edits import Plan, RemoveBlock, Width
from convwright.edits.importance import IMPORTANCE, OBSERVERS
from convwright.errors import ConvwrightError, did_you_mean
from convwright.methods.base import Candidate, Evidence, register
from convwright.methods.options import MethodOptions
from convwright.methods.saliency.allocate import Allocation, allocation
from convwright.methods.script import Script, Scripted

if TYPE_CHECKING:
    from convwright.architecture import Architecture

CHANNELS = "saliency"
BLOCKS = "block-losses"


class SaliencyOptions(MethodOptions):
    """Options of method ``saliency``.

    Attributes:
        kind: How channels are scored: ``taylor``, ``taylor-batch``, ``fisher``, ``activation-mean``,
            ``activation-variance``, ``l2``, ``l1``, ``bn-scale`` or ``random``.
        rounds: In how many steps the network is cut; channels are scored anew after each.
        epochs_between: Epochs of training after each cut but the last; they are taken from those of the last.
        blocks: Whether whole blocks may go, too.
    """

    kind: str = "taylor"
    rounds: int = Field(4, ge=1)
    epochs_between: int = Field(0, ge=0)
    blocks: bool = True


@register("saliency")
class Saliency(Scripted):
    """Cuts the channels and blocks that a trained network misses least, by exact costs, then fine-tunes.

    1. The untouched network, trained or given, says by gradients on calibration images what each channel is worth, and
       by measured losses what each block is worth.
    2. The widths and blocks that lose the least within the budget go (`convwright.allocate`). In several rounds, each a
       part of the way: what is left is scored anew after each, on the repaired network.
    3. The result is fine-tuned, and the untouched network beside it for as long.

    Sources: first-order Taylor terms (Molchanov et al. 2017 and 2019), per sample at the consumers of a channel; the
    allocation by marginal cost and the rounds without training are ours.

    Raises:
        BudgetError: No widths and blocks meet the limits.
        ConvwrightError: The network has nothing that could change, or an option is wrong.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> limits = cw.parse_budget("macs<=50%").resolve(arch.profile())
        >>> method = cw.methods.Saliency(arch, limits, epochs=0, tune_epochs=3)
        >>> [(c.role, c.epochs, c.probes) for c in method.ask()]
        [('base', 0, ('saliency', 'block-losses'))]
    """

    Options = SaliencyOptions
    options: SaliencyOptions
    limits: Limits  # never None here
    needs_budget = "cuts a trained network to a budget; give one, such as macs<=50%"

    def set_up(self) -> None:
        """Refuse, before any training, what cannot be cut."""
        kind, known = self.options.kind, [*OBSERVERS, *IMPORTANCE]
        if kind not in known:
            raise ConvwrightError(
                f"option kind={kind!r} of method saliency: give one of {', '.join(known)}.{did_you_mean(kind, known)}"
            )
        if not self.arch.free_groups:
            raise ConvwrightError(f"{self.arch.source} has no channels that could change; `convwright doctor` says why")
        flat = {group.name: np.ones(group.units) for group in self.arch.free_groups}
        allocation(self.arch, flat, self.limits, divisor=self.terms.divisor)
        self.probe = CHANNELS if kind == "taylor" else f"{CHANNELS}-{kind}"

    def _run(self) -> Script:
        plan, terms = Plan.empty(self.arch), self.terms
        probes = (self.probe, *((BLOCKS,) if self.options.blocks else ()))
        (now,) = yield (Candidate(plan, None, terms.epochs, terms.seed, role="base", probes=probes),)
        arch, left = self.arch, terms.tune_epochs
        for number in range(1, self.options.rounds + 1):
            if not now.usable:
                return
            last = number == self.options.rounds
            found = self._cut(arch, now, self._aim(number))
            if not found.edits and not last:
                continue
            plan, arch = plan.with_edits(*found.edits), arch.apply(*found.edits, verify=False)
            self._note(f"cut {number} of {self.options.rounds}", _words(found, arch, self.limits), kept=now.trial + 1)
            if last:
                break
            between = min(self.options.epochs_between, max(0, left - 1))
            left -= between
            (now,) = yield (Candidate(plan, now.trial, between, terms.seed + number, probes=probes),)
        untouched = Candidate(Plan.empty(self.arch), 0, terms.tune_epochs, terms.seed + 1, role="baseline")
        _, final = yield (untouched, Candidate(plan, now.trial, left, terms.seed + 1))
        self._final = final.trial if self._meets(final) else None

    def _aim(self, number: int) -> Limits:
        """Return the limits of a round: equal steps in the ratio of costs."""
        part = number / self.options.rounds
        if part == 1:
            return self.limits
        present = self.limits.costs(CostModel.of(self.arch), {})
        between = {
            metric: max(limit, int(present[metric] ** (1 - part) * limit**part))
            for metric, limit in self.limits.limits.items()
        }
        return replace(self.limits, limits=between)

    def _cut(self, arch: Architecture, now: Evidence, limits: Limits) -> Allocation:
        free = {group.name for group in arch.free_groups}
        worth = blocks_worth(now.probes.get(BLOCKS)) if self.options.blocks else None
        known = {name: values for name, values in now.probes[CHANNELS]["groups"].items() if name in free}
        return allocation(arch, known, limits, divisor=self.terms.divisor, blocks=worth)


def blocks_worth(measured: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what blocks are worth in the unit of the channels' saliency, by the curve of measured losses.

    Args:
        measured: what the probe of block losses found: ``blocks``, name -> rise of the loss, and ``curve``, rising
            pairs (saliency lost, rise of the loss).
    """
    if not measured:
        return {}
    lost, rise = np.array(measured["curve"], dtype=np.float64).T
    rise = rise + np.arange(len(rise)) * 1e-12  # strictly rising
    return {
        name: float(np.interp(max(value, 0.0), rise, lost, right=np.inf))
        for name, value in measured["blocks"].items()
        if value is not None
    }


def _words(found: Allocation, arch: Architecture, limits: Limits) -> str:
    costs = limits.costs(CostModel.of(arch), {}) if not limits.measures else {}
    gone = [edit.target for edit in found.edits if isinstance(edit, RemoveBlock)]
    widths = sum(isinstance(edit, Width) for edit in found.edits)
    parts = [f"{widths} groups narrower", *([f"without {', '.join(gone)}"] if gone else [])]
    parts += [f"{human(cost, metric)} {metric}" for metric, cost in costs.items()]
    return "; ".join(parts)
