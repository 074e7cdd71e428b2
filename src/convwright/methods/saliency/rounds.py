"""Cutting a network to a budget in rounds: what is left is scored anew after each, on the repaired network."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from convwright.cost.budget import Limits
from convwright.edits import Plan, RemoveBlock, Width, check_execution
from convwright.errors import counted
from convwright.methods.base import Candidate, Evidence
from convwright.methods.saliency.allocate import Allocation, allocation
from convwright.methods.script import Batch

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.edits.constraints import DivisorLike

CHANNELS = "saliency"
BLOCKS = "block-losses"


@dataclass(frozen=True, eq=False)
class Start:
    """A network to cut: its plan, the network itself, and the trial with its weights and what was observed there."""

    plan: Plan
    arch: Architecture
    evidence: Evidence


@dataclass(frozen=True)
class FinalCut:
    """What became of it: the whole plan, the trial whose weights it inherits, and a sentence per round."""

    plan: Plan
    parent: int
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cutting:
    """How a network is cut to limits in rounds.

    Attributes:
        arch: The untouched network.
        limits: The budget in numbers.
        divisor: Of new widths.
        kind: How channels are scored.
        rounds: In how many steps; channels are scored anew after each.
        blocks: Whether blocks may go, too.
    """

    arch: Architecture
    limits: Limits
    divisor: DivisorLike = "auto"
    kind: str = "taylor"
    rounds: int = 4
    blocks: bool = True

    @property
    def probes(self) -> tuple[str, ...]:
        """What must be observed of a network that is cut next."""
        kind = "" if self.kind == "taylor" else f"-{self.kind}"
        return (CHANNELS + kind, BLOCKS + kind) if self.blocks else (CHANNELS + kind,)

    def run(self, start: Start, seed: int, epochs: int = 0) -> Generator[Batch, tuple[Evidence, ...], FinalCut | None]:
        """Yield a candidate after each round but the last, and return the last cut, which nothing was tried of yet.

        Args:
            start: The network, observed by `probes`.
            seed: Of the candidates.
            epochs: Of training after each round but the last.

        Returns:
            None where a trial failed.
        """
        plan, arch, now = start.plan, start.arch, start.evidence
        words: tuple[str, ...] = ()
        for number in range(1, self.rounds + 1):
            if not now.usable:
                return None
            found = self._cut(arch, now, number / self.rounds)
            if found.edits:
                plan, arch = plan.with_edits(*found.edits), arch.apply(*found.edits, verify=False)
                words = (*words, f"round {number} of {self.rounds}: {_words(found)}")
            if found.edits and number < self.rounds:
                (now,) = yield (Candidate(plan, now.trial, epochs, seed + number, probes=self.probes),)
        return FinalCut(plan, now.trial, words) if now.usable else None

    @cached_property
    def _present(self) -> Mapping[str, int]:
        return self.limits.costs(self.arch.cost_model(), {})

    def _aim(self, part: float) -> Limits:
        """Return the limits of a round: equal steps in the ratio of costs."""
        between = {
            metric: max(limit, int(self._present[metric] ** (1 - part) * limit**part)) if part < 1 else limit
            for metric, limit in self.limits.limits.items()
        }
        return replace(self.limits, limits=between)

    def _cut(self, arch: Architecture, now: Evidence, part: float) -> Allocation:
        if self.arch.fixed and not arch.fixed:  # an edit does not say anew which widths the network's code fixes
            arch = check_execution(arch).architecture
        free = {group.name for group in arch.free_groups}
        scores = {name: values for name, values in now.probes[CHANNELS]["groups"].items() if name in free}
        worth = blocks_worth(now.probes.get(BLOCKS)) if self.blocks else None
        # Estimates are for the widths of the untouched network; other blocks and the end are measured.
        same = len(arch.layers) == len(self.arch.layers) and arch.example_input.shape == self.arch.example_input.shape
        measured = self.limits.measures and (part == 1 or not same)
        return allocation(arch, scores, self._aim(part), divisor=self.divisor, blocks=worth, measured=measured)


def blocks_worth(measured: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what blocks are worth in the unit of the channels' saliency, by the curve of measured losses.

    Args:
        measured: what the probe of block losses found: ``blocks``, name -> rise of the loss, and ``curve``, rising
            pairs (saliency lost, rise of the loss).
    """
    if not measured or not measured["blocks"]:
        return {}
    lost, rise = np.array(measured["curve"], dtype=np.float64).T
    rise = rise + np.arange(len(rise)) * 1e-12  # strictly rising
    return {
        name: float(np.interp(max(value, 0.0), rise, lost, right=np.inf))
        for name, value in measured["blocks"].items()
        if value is not None
    }


def _words(found: Allocation) -> str:
    gone = [edit.target for edit in found.edits if isinstance(edit, RemoveBlock)]
    widths = sum(isinstance(edit, Width) for edit in found.edits)
    parts = [f"{counted(widths, 'group')} narrower", *([f"without {', '.join(gone)}"] if gone else [])]
    return "; ".join([*parts, f"{found.use:.1%} of the round's limit used"])
