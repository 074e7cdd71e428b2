"""What the first training of the untouched network tells a search: blocks in conflict, and the quality of channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from convwright.edits.constraints import DivisorLike
from convwright.errors import ConvwrightError, RunError
from convwright.methods.auto.proposals import Findings, qualities, structure_of
from convwright.methods.channel_search.readings import PROBE, check_measurable, read_trial
from convwright.methods.conflicts.blocks import read_conflicts
from convwright.methods.shared.width_surface import Surface
from convwright.metrics.quality.channel_quality import members

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits
    from convwright.methods.auto.designs import DesignBuilder
    from convwright.methods.base import Evidence

BUNDLES = "bundles"
NORMS = "channel-norms"


@dataclass(frozen=True, eq=False)
class FirstTraining:
    """What to observe of a network, and how to read it.

    Attributes:
        arch: The network.
        known: What its structure alone tells.
        measured: Whether there are kernels whose quality can be observed.
    """

    arch: Architecture
    known: Findings
    measured: bool

    @classmethod
    def of(cls, arch: Architecture) -> FirstTraining:
        """Look at a network's structure."""
        try:
            check_measurable(arch, members(arch))
        except ConvwrightError:
            return cls(arch, structure_of(arch), measured=False)
        return cls(arch, structure_of(arch), measured=True)

    @property
    def probes(self) -> tuple[str, ...]:
        """What to observe in the first training: conflicts where a block can go, quality where there are kernels."""
        groups = self.known.groups
        free = any(name not in groups.fixed for stage in groups.stages for name in stage)
        return (*((BUNDLES,) if free else ()), *((NORMS,) if self.arch.free_groups else ()), *self.later_probes)

    @property
    def later_probes(self) -> tuple[str, ...]:
        """What to observe in a training whose network neighbours are proposed for."""
        return (PROBE,) if self.measured else ()

    def found(self, base: Evidence, bench: DesignBuilder) -> Findings:
        """Return what is known after the first training."""
        residual = any(block.kind == "residual" for block in self.arch.blocks)
        read = read_conflicts(base, "any" if residual else "last", 1)
        hit = {n: v for n, v in read.blocks.items() if v > 0} if read is not None and read.seen else {}
        ordered = dict(sorted(hit.items(), key=lambda item: -item[1]))
        quality = quality_of(base, bench.arch, bench.limits, bench.divisor)
        norms = base.probes.get(NORMS, {}).get("norms", {})
        return replace(
            self.known, conflicts=ordered, quality=quality, norms={name: tuple(each) for name, each in norms.items()}
        )


def quality_of(evidence: Evidence, arch: Architecture, limits: Limits, divisor: DivisorLike = 1) -> dict[str, float]:
    """Return the quality of each channel group over the mean; nothing where none was measured or all is noise.

    Args:
        evidence: Of a training of the network.
        arch: The network.
        limits: Of the widths that it will be used for.
        divisor: Of them.
    """
    if PROBE not in evidence.probes:
        return {}
    try:
        families = Surface(arch, limits, divisor=divisor, checked=False).families
        reading = read_trial(evidence, members(arch), families, "qc", highest=False)
    except (ConvwrightError, RunError):
        return {}
    return qualities(reading.families) if reading is not None and any(reading.groups.values()) else {}
