"""What the searches by designs share: a first training that is read, then designs that are trained on by rounds.

The first training of the untouched network tells which blocks are in conflict, and the quality of channels.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pydantic import Field

from convwright.cost.budget import human
from convwright.edits import Plan
from convwright.edits.constraints import DivisorLike
from convwright.errors import ConvwrightError
from convwright.methods.auto.designs import DesignBuilder, ProposedDesign
from convwright.methods.auto.proposals import Findings, qualities, structure_of
from convwright.methods.base import Candidate, Evidence, Weights
from convwright.methods.channel_search.readings import PROBE, check_measurable, read_trial
from convwright.methods.conflicts.blocks import read_conflicts
from convwright.methods.options import MethodOptions
from convwright.methods.script import Batch, Scripted
from convwright.methods.shared.halving import Scored
from convwright.methods.shared.width_surface import Surface
from convwright.metrics.quality.channel_quality import members

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.cost.budget import Limits

BUNDLES = "bundles"
NORMS = "channel-norms"


@dataclass(frozen=True, eq=False)
class Runner:
    """A design in the race.

    Attributes:
        origin: What made its design, from the network that the design's edits are for.
        design: What it is.
        plan: All edits, from the untouched network on.
        trial: Its last training.
        costs: Counted there.
        epochs: Of all trainings after the first one of the untouched network.
        scored: Its last score.
        recipe: Changes of the recipe, as in `Candidate.recipe`.
        weights: How its next training gets them, as in `Candidate.weights`.
        anew: Whether it began with new weights.
    """

    origin: DesignBuilder
    design: ProposedDesign
    plan: Plan
    trial: int
    costs: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 0
    scored: Scored = field(default_factory=lambda: Scored(float("nan")))
    recipe: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights = "inherit"
    anew: bool = False

    @property
    def words(self) -> str:
        """What it is, for a person."""
        return self.design.words

    @property
    def told(self) -> str:
        """What it is, and how good."""
        return f"{self.words} {self.scored.judged}"

    def redesigned(self, bench: DesignBuilder, design: ProposedDesign) -> Runner:
        """Return it with a design that was made from its own network."""
        return replace(self, origin=bench, design=design, plan=self.plan.with_edits(*design.edits))

    @property
    def bench(self) -> DesignBuilder:
        """What makes designs from its own network."""
        if not self.design.edits:
            return self.origin
        return DesignBuilder(self.origin.scene(self.design.edits).arch, self.origin.limits, self.origin.divisor)


Runners: TypeAlias = Generator[Batch, tuple[Evidence, ...], tuple[Runner, ...]]


class DesignOptions(MethodOptions):
    """Options of the searches by designs.

    Attributes:
        search_epochs: Epochs of all candidates before the final training; None: `DesignSearch.per_tuning` times
            `tune_epochs`.
        eta: Of successive halving: one in so many goes on.
        rounds: Rounds after the race at most.
    """

    search_epochs: int | None = Field(None, ge=1)
    eta: int = Field(3, ge=2)
    rounds: int = Field(2, ge=0)


class DesignSearch(Scripted):
    """Trains the untouched network, then designs with its weights, and says what it decides.

    Attributes:
        per_tuning: Epochs of the search for each epoch of the final training.
        later_probes: What to observe in a training whose network neighbours are proposed for.
        findings: What is known of the network so far.
        untouched: The plan without edits.
        left: Epochs that the search has left.
    """

    options: DesignOptions
    limits: Limits  # never None here
    ranks = True
    beyond_widths = True
    per_tuning: ClassVar[int]
    findings: Findings
    later_probes: tuple[str, ...]

    def set_up(self) -> None:
        """Read what is known before any training."""
        given = self.options.search_epochs
        self.left = given if given is not None else self.per_tuning * self.terms.tune_epochs
        self.findings, self.later_probes = structure_of(self.arch), (PROBE,)
        try:
            check_measurable(self.arch, members(self.arch))
        except ConvwrightError:  # no kernels whose quality can be observed
            self.later_probes = ()
        self.untouched = Plan.empty(self.arch)
        self._step = 0

    def _diagnosed(self, base: Evidence, aim: str, conflicts: str = "", *more: str) -> None:
        known, profile = self.findings, self.arch.profile()
        numbers = f"{human(profile.macs)} MACs, {human(profile.params, 'params')} parameters"
        accuracy = f"{base.metric.name} {base.judged}"
        fields = f"{known.blind_layers} layers see nothing new"
        blocks = f"{len(known.conflicts)} blocks in conflict{conflicts}"
        told = "; ".join((f"{numbers}, {accuracy}; {aim}", fields, blocks, *more, *known.notes))
        self._note("network", told, {base.trial: "the untouched network"})

    def _base(self, bench: DesignBuilder) -> Generator[Batch, tuple[Evidence, ...], Evidence | None]:
        """Train the untouched network and read it; None if that failed."""
        terms, groups = self.terms, self.findings.groups
        free = any(name not in groups.fixed for stage in groups.stages for name in stage)
        probes = (*[BUNDLES] * free, *[NORMS] * bool(self.arch.free_groups), *self.later_probes)
        (base,) = yield (Candidate(self.untouched, None, terms.epochs, terms.seed, role="base", probes=probes),)
        if not base.usable:
            why = f"there is nothing to begin with, {base.message}"
            self._note("network", why, {base.trial: "the untouched network"})
            return None
        residual = any(block.kind == "residual" for block in self.arch.blocks)
        read = read_conflicts(base, "any" if residual else "last", 1)
        hit = {n: v for n, v in read.blocks.items() if v > 0} if read is not None and read.seen else {}
        norms = base.probes.get(NORMS, {}).get("norms", {})
        self.findings = replace(
            self.findings,
            conflicts=dict(sorted(hit.items(), key=lambda item: -item[1])),
            quality=quality_of(base, bench.arch, bench.limits, bench.divisor),
            norms={name: tuple(each) for name, each in norms.items()},
        )
        return base

    def _trained(self, runners: Sequence[Runner], epochs: int, probes: tuple[str, ...]) -> Runners:
        """Train all on by some epochs, with one seed; return them as they are afterwards."""
        self._step += 1
        self.left -= len(runners) * epochs
        evidence = yield tuple(self._candidate(r, epochs, probes) for r in runners)
        return tuple(self._after(r, e, epochs) for r, e in zip(runners, evidence, strict=True))

    def _candidate(self, runner: Runner, epochs: int, probes: tuple[str, ...] = ()) -> Candidate:
        parent, seed = None if runner.weights == "fresh" else runner.trial, self.terms.seed + self._step
        how: dict[str, Any] = {"recipe": runner.recipe, "weights": runner.weights}
        return Candidate(runner.plan, parent, epochs, seed, probes=probes, **how)

    def _after(self, runner: Runner, evidence: Evidence, epochs: int) -> Runner:
        """Return a runner after a training, whose weights it keeps; without a score where that failed."""
        scored = Scored.of(evidence) if self._meets(evidence) else Scored(float("nan"))
        epochs += runner.epochs
        return replace(
            runner, trial=evidence.trial, costs=evidence.costs, epochs=epochs, scored=scored, weights="inherit"
        )

    def _why_not(self, runner: Runner) -> str:
        return self.results[runner.trial].message or "it breaks the limits"


def reasons(dropped: Mapping[str, str], most: int = 3) -> str:
    """Return what could not be made and why, in one line; of `DesignBuilder.dropped` a few, enough for an error."""
    return "; ".join(f"{words}: {why}" for words, why in list(dropped.items())[:most])


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
    except ConvwrightError:
        return {}
    return qualities(reading.families) if reading is not None and any(reading.groups.values()) else {}
