"""The kernel-level optimizer: cheaper operators where no stage's 3D receptive field falls.

**Reconstructed.** Wang, Feng, Peng and Ding (CIKM 2021, arXiv 2009.05236) replace kernels by depthwise plus rolling
pointwise convolutions (DW+RPW) to save parameters and MACs; how they select could not be obtained. Placements follow
the authors' related code (DSXplore). The rule here: of the operators considered, take the one with the fewest
parameters with which the stage still sees at least the share ``tolerance`` of what it saw; of equal ones, the smallest
overlap. That it stops at a budget, so that no layer becomes cheaper than it has to, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from convwright.architecture import Architecture, Layer, Stage
from convwright.cost.budget import Limits, human
from convwright.edits import Edit
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import register
from convwright.methods.options import MethodOptions, Terms
from convwright.methods.proposals import Proposal, Proposals
from convwright.methods.receptive_field.layer_operators import Choice, Menu, Place, choices, find_places
from convwright.methods.receptive_field.organizer import check_counted
from convwright.methods.receptive_field.stage_units import unjudged
from convwright.metrics.receptive_field.analysis import FieldMeasure, StagePart
from convwright.metrics.receptive_field.interpreter import FieldWalk

Chosen = dict[str, Choice]
_IN_HEAD = "it lies in no stage, so no field tells what another operator would lose"
_AFTER_ALL = "it reads what sees everything already, as in a gate, so no field tells what another operator would lose"
_NO_OFFER = "no operator of the menu fits it and has fewer parameters"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class StageKernels:
    """What was chosen in one stage.

    Attributes:
        stage: its name.
        share_before: rho of the stage as it was.
        share_after: rho with the new operators.
        chosen: new operator by layer; layers that stay are left out.
    """

    stage: str
    share_before: float
    share_after: float
    chosen: Mapping[str, Choice]


@dataclass(frozen=True)
class Kernels:
    """What the kernel-level optimizer decided.

    Attributes:
        stages: per stage with convolutions.
        edits: from the network to the new one.
        macs: MACs before and after.
        params: parameters before and after.
        stays: convolutions that were not considered -> why.
        unjudged: stages whose share does not tell everything -> what it leaves out.
    """

    stages: tuple[StageKernels, ...]
    edits: tuple[Edit, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    stays: Mapping[str, str] = field(default_factory=dict)
    unjudged: Mapping[str, str] = field(default_factory=dict)

    def log(self) -> tuple[str, ...]:
        """Return the decision in sentences with numbers."""
        lines = [
            f"{len(self.edits)} operators are replaced, MACs {human(self.macs[0])} -> {human(self.macs[1])}, "
            f"parameters {human(self.params[0], 'params')} -> {human(self.params[1], 'params')}."
        ]
        for stage in self.stages:
            seen = f"{stage.stage} sees {stage.share_after:.1%} of its input (before: {stage.share_before:.1%})"
            chosen = "; ".join(f"{name}: {choice}" for name, choice in stage.chosen.items())
            lines.append(f"{seen}. {chosen or 'Nothing cheaper keeps that'}.")
        lines += [f"{stage}: {what}." for stage, what in self.unjudged.items()]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.stays.items():
            by_reason.setdefault(reason.rstrip("."), []).append(name)
        for reason, names in by_reason.items():
            several = f"{len(names)} convolutions stay ({names[0]}, ..., {names[-1]})"
            lines.append(f"{several if len(names) > 1 else f'{names[0]} stays'}: {reason}.")
        return tuple(lines)


def optimize_kernels(
    arch: Architecture,
    menu: Menu | None = None,
    tolerance: float = 1.0,
    sight: FieldMeasure | None = None,
    limits: Limits | None = None,
) -> Kernels:
    """Choose the cheapest operators with which no stage sees less, or just cheap enough ones for a budget.

    Args:
        arch: the network; its weights are not looked at.
        menu: which operators are considered, and where.
        tolerance: share of its field (tau) that a stage keeps at least; 1: no field is lost.
        sight: how fields are counted.
        limits: on MACs and parameters. What the cheapest operators leave of it is given back to the layers that save
            least, so that few layers change. None, or limits that even the cheapest break: the cheapest.

    Returns:
        The decision; ``edits`` leads to the new network.

    Raises:
        ConvwrightError: the tolerance is out of range, or the network has no convolution that could change.
    """
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance <= 1:
        raise ConvwrightError(f"tolerance is a number above 0 and at most 1, not {tolerance!r}")
    menu, sight = menu or Menu(), sight or FieldMeasure()
    places, not_placed = find_places(arch, menu)
    not_judged, partly_judged = _judged(arch, places)
    stays = {**not_placed, **not_judged}
    by_name = {place.layer.name: place for place in places if place.layer.name not in stays}
    offers = {name: choices(arch, place, menu) for name, place in by_name.items()}
    stays |= {name: _NO_OFFER for name, offered in offers.items() if not offered}
    if not any(offers.values()):
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in list(stays.items())[:3])
        raise ConvwrightError(
            f"{arch.source} has no convolution whose operator could change ({reasons or 'it has none'})."
        )
    changing = (stage for stage in arch.stages if any(name in by_name for name in stage.layers))
    benches = [_Bench(arch, stage, by_name, offers, sight, tolerance) for stage in changing]
    bill = _Bill(arch, {name: place.first for name, place in by_name.items()})
    chosen = {name: choice for bench in benches for name, choice in bench.resolve().items()}
    if limits is not None and limits.met(bill.costs(chosen)):
        chosen = _given_back(chosen, benches, bill, limits)
    stages = tuple(bench.record(chosen) for bench in benches)
    edits = tuple(edit for c in chosen.values() if (edit := c.edit(menu.order)) is not None)
    before, after = bill.costs({}), bill.costs(chosen)
    macs, params = ((before[metric], after[metric]) for metric in ("macs", "params"))
    return Kernels(stages, edits, macs, params, stays, partly_judged)


@dataclass(frozen=True)
class _Bill:
    """What the network costs with some operators in place of its own."""

    arch: Architecture
    first: Mapping[str, Choice]

    def costs(self, chosen: Mapping[str, Choice]) -> dict[str, int]:
        profile = self.arch.profile()
        costs = {"macs": profile.macs, "params": profile.params}
        for name, choice in chosen.items():
            costs["macs"] += choice.macs - self.first[name].macs
            costs["params"] += choice.params - self.first[name].params
        return costs

    def saved(self, choice: Choice, limits: Limits) -> float:
        """Return what an operator saves of what is limited, in shares of the limits."""
        first = self.first[choice.layer]
        return float(sum((getattr(first, m) - getattr(choice, m)) / limit for m, limit in limits.limits.items()))


def _given_back(chosen: Chosen, benches: Sequence[_Bench], bill: _Bill, limits: Limits) -> Chosen:
    """Return dearer operators up to the limits, for the layers that save least first."""
    at = {name: bench for bench in benches for name in bench.places}
    for name in sorted(chosen, key=lambda name: bill.saved(chosen[name], limits)):
        first, present = bill.first[name], chosen[name]
        dearer = [first, *(c for c in at[name].offers[name] if present.params < c.params < first.params)]
        several = ({**chosen, name: offer} for offer in sorted(dearer, key=lambda c: -c.params))
        fitting = (tried for tried in several if limits.met(bill.costs(tried)) and at[name].keeps(tried))
        chosen = next(fitting, chosen)
    return {name: choice for name, choice in chosen.items() if choice != bill.first[name]}


def _judged(arch: Architecture, places: Sequence[Place]) -> tuple[dict[str, str], dict[str, str]]:
    """Return convolutions that their stage's field says nothing about -> why; stage -> what its share leaves out."""
    in_stage = {name for stage in arch.stages for name in stage.layers}
    names = {place.layer.name for place in places}
    stays, left_out = dict.fromkeys(names - in_stage, _IN_HEAD), {}
    for stage in arch.stages:
        inside = [name for name in stage.layers if name in names]
        if inside:
            walk = StagePart.of(arch, stage).walk()
            stays |= {name: _AFTER_ALL for name in inside if _reads_everything(walk, arch.layer(name))}
            if missing := unjudged(walk):
                left_out[stage.name] = "; ".join(missing)
    return stays, left_out


def _reads_everything(walk: FieldWalk, layer: Layer) -> bool:
    """Whether a layer reads what a global operator gives, or nothing of the stage's input."""
    flow = walk.architecture.flow
    read = walk.inputs(flow.nodes[flow.place[layer.node]])
    return not read or read[0].whole


class _Bench:
    """One stage, whose operators are tried by what it sees with them."""

    def __init__(
        self,
        arch: Architecture,
        stage: Stage,
        places: Mapping[str, Place],
        offers: Mapping[str, tuple[Choice, ...]],
        sight: FieldMeasure,
        tolerance: float,
    ) -> None:
        self.stage, self.sight = stage, sight
        self.part = StagePart.of(arch, stage)
        self.places = {name: places[name] for name in stage.layers if name in places}
        self.offers = {name: offers[name] for name in self.places}
        self.before = self.share({})
        self.floor = self.before * tolerance - _ROUNDING

    def share(self, chosen: Chosen) -> float:
        """Return rho of the stage with some operators in place of its own."""
        walk = self.part.begin()
        walk.instead = {
            self.places[name].layer.node: self.places[name].passing(walk, choice) for name, choice in chosen.items()
        }
        return self.sight.share(self.part, walk.run(self.part.positions))

    def keeps(self, chosen: Mapping[str, Choice]) -> bool:
        """Whether the stage sees enough with some operators; those of other stages do not count."""
        return self.share({name: chosen[name] for name in self.places if name in chosen}) >= self.floor

    def resolve(self) -> Chosen:
        """Choose alike for all layers first, then cheaper ones layer by layer, the most expensive first."""
        chosen = self._alike()
        for name in sorted(self.places, key=lambda name: -self.places[name].first.params):
            present = chosen.get(name, self.places[name].first)
            cheaper = ({**chosen, name: o} for o in self.offers[name] if o.params < present.params)
            chosen = next(filter(self.keeps, cheaper), chosen)
        return {name: chosen[name] for name in self.places if name in chosen}

    def record(self, chosen: Mapping[str, Choice]) -> StageKernels:
        own = {name: chosen[name] for name in self.places if name in chosen}
        return StageKernels(self.stage.name, self.before, self.share(own), own)

    def _alike(self) -> Chosen:
        """Return the cheapest choice of one kind for all layers that keeps the field; empty if none does.

        A grouped operator alone loses reach that the next one brings back, so layers are not judged one by one.
        """
        kinds: dict[tuple[int, float], Chosen] = {}
        for name, offers in self.offers.items():
            for offer in offers:
                if offer.operator in ("dw_separable", "dw_rpw", "rpw"):
                    kinds.setdefault((offer.groups, offer.overlap), {})[name] = offer

        def rank(kind: tuple[int, float]) -> tuple[int, float]:
            return sum(kinds[kind].get(name, place.first).params for name, place in self.places.items()), kind[1]

        return next((kinds[kind] for kind in sorted(kinds, key=rank) if self.keeps(kinds[kind])), {})


class KernelOptions(MethodOptions):
    """Options of method ``kernel``.

    Attributes:
        menu: Which operators are considered, and where.
        tolerance: Share of its field that a stage keeps at least.
        sight: How fields are counted.
    """

    menu: Menu | None = None
    tolerance: float = Field(1.0, gt=0, le=1)
    sight: FieldMeasure | None = None


@register("kernel")
class KernelOptimizer(Proposals):
    """The kernel-level optimizer as a search method: one proposal, trained beside the untouched network.

    A budget limits MACs and parameters: up to it operators get cheaper; without one the cheapest are taken. Widths
    stay.

    Attributes:
        kernels: The decision, known before any training.

    Raises:
        BudgetError: The cheapest operators that keep the fields do not meet the limits, the network meets them as it
            is, or they limit something else than MACs and parameters.
        ConvwrightError: No convolution could change.

    Examples:
        >>> import convwright as cw
        >>> optimizer = cw.methods.KernelOptimizer(cw.read("zoo:mobilenet-v1"))
        >>> optimizer.kernels.params[1] < 0.35 * optimizer.kernels.params[0]
        True
    """

    Options = KernelOptions
    options: KernelOptions
    default_terms = Terms(epochs=0)

    def set_up(self) -> None:
        """Decide."""
        limits, given = self.limits, self.options
        check_counted(limits)
        self.kernels = optimize_kernels(self.arch, given.menu, given.tolerance, given.sight, limits)
        reached = {"macs": self.kernels.macs[1], "params": self.kernels.params[1]}
        if limits is not None and not limits.met(reached):
            said = ", ".join(f"{m} {human(reached[m], m)}" for m in limits.limits)
            raise BudgetError(
                f"the cheapest operators with which no stage sees less reach {said}, not {limits.describe()}. "
                f"{len(self.kernels.edits)} are replaced. Give a larger budget, or narrow the network as well."
            )
        if limits is not None and not self.kernels.edits:
            raise BudgetError(
                f"{self.arch.source} meets {limits.describe()} as it is, and operators are made no cheaper than a "
                "budget needs. Give a smaller budget."
            )
        words = f"{len(self.kernels.edits)} operators replaced"
        self.propose_one(Proposal(words, self.kernels.edits), "kernel-level optimizer", self.kernels.log())
