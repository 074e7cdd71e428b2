"""Stages as runs of units: how far each sees with any number of units, and what a unit costs.

Shares are found on the network's own graph: the nodes of a block are passed over or followed once more, and the
rest of the stage as it stands. Nothing is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from convwright.architecture import Architecture, Block, Stage
from convwright.architecture.blocks import outermost
from convwright.edits import AddBlock, Edit, RemoveBlock
from convwright.edits.depth import needs_measuring, why_not_removable, why_not_repeatable
from convwright.methods.shared.stage_knobs import refused
from convwright.metrics.receptive_field.analysis import FieldMeasure, StagePart
from convwright.metrics.receptive_field.interpreter import FieldWalk


@dataclass(frozen=True)
class UnitCost:
    """What one unit costs for one sample."""

    macs: int
    params: int


@dataclass(frozen=True, eq=False)
class UnitStage:
    """A stage as a run of units.

    Attributes:
        name: of the stage.
        units: names of its blocks, in execution order.
        removable: those of them that can go, in the order in which they would: from the last on.
        repeatable: the block that would be copied, behind which the copies stand; empty if there is none.
        costs: what each unit costs, by name.
        reason: why units can be neither removed nor added, or only one of both, and what its share does not tell;
            empty if there is nothing to say.
        sight: how fields are measured.
    """

    arch: Architecture = field(repr=False)
    part: StagePart = field(repr=False)
    name: str
    units: tuple[str, ...]
    removable: tuple[str, ...]
    repeatable: str
    costs: Mapping[str, UnitCost]
    reason: str
    sight: FieldMeasure
    _shares: dict[int, float] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Units that the stage has (n)."""
        return len(self.units)

    @property
    def least(self) -> int:
        """Units that it keeps at least."""
        return self.count - min(len(self.removable), self.count - 1)

    def allows(self, count: int) -> bool:
        """Whether the stage could have this many units."""
        return self.least <= count and (count <= self.count or bool(self.repeatable))

    def share(self, count: int) -> float:
        """Return rho of the stage with this many units, on its own scope."""
        if count not in self._shares:
            # More units never see less: where fewer see everything, nothing is left to be measured.
            full = self.sight.clip and any(n < count and seen >= 1 for n, seen in self._shares.items())
            self._shares[count] = 1.0 if full else self._measured(count)
        return self._shares[count]

    def cost_of(self, count: int) -> UnitCost:
        """Return what this many units cost beyond the present ones (negative where they are fewer)."""
        if count >= self.count:
            each = self.costs.get(self.repeatable, UnitCost(0, 0))
            more = count - self.count
            return UnitCost(each.macs * more, each.params * more)
        gone = [self.costs[name] for name in self.removable[: self.count - count]]
        return UnitCost(-sum(c.macs for c in gone), -sum(c.params for c in gone))

    def edits(self, count: int) -> tuple[Edit, ...]:
        """Return the edits that give the stage this many units."""
        if count > self.count:
            return (AddBlock(self.repeatable, copies=count - self.count),)
        return tuple(RemoveBlock(name) for name in self.removable[: self.count - count])

    def _measured(self, count: int) -> float:
        walk = self.part.begin()
        removed = {self._blocks[name].exit: self._blocks[name] for name in self.removable[: max(0, self.count - count)]}
        gone = {n for block in removed.values() for n in self.arch.flow.span(block)}
        repeated = self._blocks.get(self.repeatable) if count > self.count else None
        for position in self.part.positions:
            name = self.arch.flow.nodes[position].name
            if name in removed:
                walk.values[name] = walk.values.get(removed[name].entry)
            elif position not in gone:
                walk.run([position])
            if repeated is not None and name == repeated.exit:
                self._repeat(walk, repeated, count - self.count)
        return self.sight.share(self.part, walk)

    def _repeat(self, walk: FieldWalk, block: Block, times: int) -> None:
        """Follow a block's nodes again, each time from where it ended."""
        before = walk.values.get(block.entry)
        span = sorted(self.arch.flow.span(block))
        for _ in range(times):
            walk.values[block.entry] = walk.values[block.exit]
            walk.run(span)
        walk.values[block.entry] = before

    @cached_property
    def _blocks(self) -> dict[str, Block]:
        return {name: self.arch.block(name) for name in self.units}


@dataclass(frozen=True)
class Units:
    """The stages of a network that have units.

    Attributes:
        stages: those whose units can be counted.
        rest: shares of the other stages (stems): the same whatever is moved.
        rest_positions: of the output maps of these.
        skipped: what was left out -> why.
    """

    stages: tuple[UnitStage, ...]
    rest: tuple[float, ...]
    rest_positions: tuple[int, ...]
    skipped: Mapping[str, str]

    @property
    def counts(self) -> tuple[int, ...]:
        """Units of each stage (n_S)."""
        return tuple(stage.count for stage in self.stages)

    def costs(self, counts: Sequence[int]) -> UnitCost:
        """Return what a distribution costs beyond the present one."""
        each = [stage.cost_of(n) for stage, n in zip(self.stages, counts, strict=True)]
        return UnitCost(sum(c.macs for c in each), sum(c.params for c in each))

    def edits(self, counts: Sequence[int]) -> tuple[Edit, ...]:
        """Return the edits from the present distribution to another."""
        return tuple(e for stage, n in zip(self.stages, counts, strict=True) for e in stage.edits(n))


def find_units(arch: Architecture, sight: FieldMeasure | None = None) -> Units:
    """Return the stages of a network as runs of units.

    Args:
        arch: the network.
        sight: how fields are measured; clipped 3DRF if not given.
    """
    sight = sight or FieldMeasure()
    stages, rest, positions, skipped = [], [], [], {}
    for stage in arch.stages:
        part = StagePart.of(arch, stage)
        walk = part.walk()
        if not part.reached(walk):
            skipped[stage.name] = "what it hands on comes from another input of the network"
            continue
        found = _unit_stage(arch, stage, part, walk, sight)
        if found is not None:
            stages.append(found)
            if found.reason:
                skipped[stage.name] = found.reason
        elif any(arch.layer(name).kind == "conv" for name in stage.layers):
            rest.append(sight.share(part, walk))
            positions.append(part.map_size)
            skipped[stage.name] = "; ".join(["it has no blocks: nothing in it could be moved", *unjudged(walk)])
    return Units(tuple(stages), tuple(rest), tuple(positions), skipped)


def unjudged(walk: FieldWalk) -> list[str]:
    """Return what a stage's share does not tell: operators without a rule, and attention beside local layers."""
    lost = [f"{reason}; what comes after it counts as seeing everything" for reason in walk.skipped.values()]
    # Gates and poolings are no news: every layer behind them is counted by its local field.
    attending = [walk.path(node) for node, how in walk.overall.items() if how.startswith("attention")]
    if attending:
        others = f" and {len(attending) - 1} others" if len(attending) > 1 else ""
        lost.append(
            f"attention ({attending[0]}{others}) sees everything; only what the layers beside it see is counted"
        )
    return lost


def _unit_stage(
    arch: Architecture, stage: Stage, part: StagePart, walk: FieldWalk, sight: FieldMeasure
) -> UnitStage | None:
    blocks = outermost(arch.flow, [arch.block(name) for name in stage.blocks])
    if not blocks:
        return None
    removals = _removals(arch, blocks)
    removable = [b.name for b in reversed(blocks) if removals[b.name] is None]
    copies = {b.name: why_not_repeatable(arch, b) for b in reversed(blocks)}
    repeatable = next((name for name, reason in copies.items() if reason is None), "")
    reasons = []
    if len(blocks) == 1:
        reasons.append("it has one unit, which stays")
    elif not removable:
        reasons.append(f"no unit can be removed: {str(removals[blocks[-1].name]).rstrip('.')}")
    if not repeatable:
        reasons.append(f"no unit can be repeated: {str(copies[blocks[-1].name]).rstrip('.')}")
    reasons += unjudged(walk)
    profile = {cost.name: cost for cost in arch.profile().layers}
    counted = {b.name: [profile[n] for n in b.layers if n in profile] for b in blocks}
    costs = {name: UnitCost(sum(c.macs for c in each), sum(c.params for c in each)) for name, each in counted.items()}
    units, reason = tuple(b.name for b in blocks), "; ".join(reasons)
    return UnitStage(arch, part, stage.name, units, tuple(removable), repeatable, costs, reason, sight)


def _removals(arch: Architecture, blocks: Sequence[Block]) -> dict[str, str | None]:
    """Return per block why it cannot be removed; those that only a measurement tells about are measured."""
    found = {block.name: why_not_removable(arch, block) for block in blocks}
    doubtful = [b.name for b in blocks if found[b.name] is None and needs_measuring(arch, b)]
    if doubtful and refused(arch, doubtful) is not None:  # measured together first: every measurement costs seconds
        found |= {name: refused(arch, [name]) for name in doubtful}
    return found
