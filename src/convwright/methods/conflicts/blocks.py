"""How many blocks each group keeps when some conflict, by the three published rules; and which blocks go."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from convwright.architecture import Architecture
from convwright.architecture.blocks import outermost
from convwright.edits.depth import needs_measuring, why_not_removable
from convwright.methods.base import Evidence
from convwright.methods.shared.stage_knobs import refused

PruneRule = Literal["first_group", "all_groups", "truncate"]
Watch = Literal["last", "any"]


def pruned(
    groups: Sequence[int],
    conflicting: Collection[int],
    rule: PruneRule = "first_group",
    *,
    least: int | Sequence[int] = 1,
    off_by_one: bool = False,
) -> tuple[int, ...]:
    """Return how many blocks each group keeps.

    Args:
        groups: Blocks of each group now.
        conflicting: Numbers of those that conflict, from 0, counted through all groups.
        rule: ``truncate``: the group of the first conflicting block ends before it (the first version, as meant);
            ``all_groups``: each group keeps as many as do not conflict (the second); ``first_group``: the first group
            that has a conflict does, the others stay (the third). With a guard, the first group that can lose one.
        least: A group keeps so many at least; one number, or one per group. The published code has no such guard: 0.
        off_by_one: With ``truncate``, as the first version was coded: a block is judged by the one after it, the last
            by the pooled features, whose number is that of all blocks.

    Examples:
        >>> from convwright.methods.conflicts.blocks import pruned
        >>> [pruned((3, 12, 41, 3), {1, 16, 57}, rule) for rule in ("truncate", "all_groups", "first_group")]
        [(1, 12, 41, 3), (2, 12, 40, 2), (2, 12, 41, 3)]
    """
    bad = {n - 1 for n in conflicting} if off_by_one else set(conflicting)
    kept, start, changed = list(groups), 0, False
    floors = [least] * len(groups) if isinstance(least, int) else least
    for number, (size, floor) in enumerate(zip(groups, floors, strict=True)):
        hit = [n - start for n in range(start, start + size) if n in bad]
        start += size
        if hit and not changed:
            new = hit[0] if rule == "truncate" else size - len(hit)
            kept[number] = max(new, min(floor, size))
            # A group that is down to its guard must not keep the others from losing what conflicts in them.
            changed = rule != "all_groups" and kept[number] < size
    return tuple(kept)


@dataclass(frozen=True)
class BlockGroups:
    """The blocks of a network by stage.

    Attributes:
        stages: names per stage, in the order of execution; stages without blocks are left out.
        fixed: block -> why it cannot be removed.
    """

    stages: tuple[tuple[str, ...], ...]
    fixed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arch: Architecture) -> BlockGroups:
        """Find the outermost blocks of each stage, and which can be removed (measured where only that tells)."""
        outer = {block.name: block for block in outermost(arch.flow, arch.blocks)}
        stages = [tuple(name for name in stage.blocks if name in outer) for stage in arch.stages]
        fixed = {}
        for name in (name for stage in stages for name in stage):
            reason = why_not_removable(arch, outer[name])
            if reason is None and needs_measuring(arch, outer[name]):
                reason = refused(arch, [name])
            if reason is not None:
                fixed[name] = reason
        return cls(tuple(stage for stage in stages if stage), fixed)

    def left(self, gone: Collection[str]) -> tuple[tuple[str, ...], ...]:
        """Return the stages without some blocks."""
        return tuple(tuple(name for name in stage if name not in gone) for stage in self.stages)

    def removable(self, gone: Collection[str]) -> tuple[str, ...]:
        """Return the blocks that could go next: a stage keeps one."""
        return tuple(n for stage in self.left(gone) if len(stage) > 1 for n in stage if n not in self.fixed)

    def going(self, names: Collection[str], gone: Collection[str] = ()) -> tuple[str, ...]:
        """Return those of some blocks that can go one after the other, without those that went before."""
        chosen: list[str] = []
        for name in names:
            if name in self.removable((*gone, *chosen)):
                chosen.append(name)
        return tuple(chosen)

    def cut(
        self, gone: Collection[str], conflicting: Collection[str], rule: PruneRule, exact: bool
    ) -> tuple[tuple[str, ...], str]:
        """Return which blocks go, and what could not be done.

        Args:
            gone: Blocks that were removed before.
            conflicting: Blocks that conflict.
            rule: How many a stage keeps.
            exact: Only blocks that the rule itself names go, since the weights are kept. Else a stage's blocks stand
                for each other, as in the published restart: if one that cannot be removed should go, another one does.
        """
        stages, out, remarks = self.left(gone), [], []
        numbers = {n for n, name in enumerate(n for stage in stages for n in stage) if name in set(conflicting)}
        least = [max(1, sum(name in self.fixed for name in stage)) for stage in stages]
        counts = pruned([len(stage) for stage in stages], numbers, rule, least=least)
        for stage, count in zip(stages, counts, strict=True):
            excess = len(stage) - count
            free = [name for name in stage if name not in self.fixed]
            named = list(stage[count:]) if rule == "truncate" else [name for name in stage if name in conflicting]
            first = [name for name in free if name in named]
            others = [] if exact else [name for name in reversed(free) if name not in named]
            chosen = [*first[-excess:], *others][:excess] if excess else []
            stuck = [name for name in named if name in self.fixed] if excess else []
            if len(chosen) < excess and stuck:
                remarks.append(f"{stuck[0]} stays: {self.fixed[stuck[0]].rstrip('.')}")
            out += [name for name in stage if name in chosen]
        return tuple(out), "; ".join(remarks)


# ------------------------------------------------------------------ what a trial showed


@dataclass(frozen=True)
class Conflicts:
    """What the probe told about one trial.

    Attributes:
        blocks: block -> share of samples in conflict, at the moment that decides; 1 where it diverged.
        mean: block -> the same as a mean over all moments; diverged ones left out.
        seen: whether there is a conflict at a moment that counts.
        diverged: the first block with a NaN; empty if there is none.
        moment: the one that decides, in words.
    """

    blocks: Mapping[str, float]
    mean: Mapping[str, float]
    seen: bool
    diverged: str
    moment: str


def read_conflicts(evidence: Evidence, watch: Watch, last_epoch: int) -> Conflicts | None:
    """Read what the probe ``bundles`` found; None if there is nothing.

    Args:
        evidence: Of a trial.
        watch: Whether the last block decides, or any.
        last_epoch: Moments after more epochs do not count.
    """
    found = evidence.probes.get("bundles")
    if not isinstance(found, Mapping) or not found.get("times") or not found.get("own"):
        return None
    own: Mapping[str, int] = found["own"]
    rows = [{n: math.nan if row[i] is None else float(row[i]) for n, i in own.items()} for row in found["excess"]]
    finite = {name: [row[name] for row in rows if math.isfinite(row[name])] for name in own}
    mean = {name: math.fsum(values) / len(values) if values else 0.0 for name, values in finite.items()}
    chosen, seen, diverged = len(rows) - 1, False, ""
    for number, (row, time) in enumerate(zip(rows, found["times"], strict=True)):
        if time["epoch"] > last_epoch:
            continue
        broken = next((name for name, value in row.items() if math.isnan(value)), "")
        watched = [list(row.values())[-1]] if watch == "last" else list(row.values())
        if broken or any(value > 0 for value in watched):
            chosen, seen, diverged = number, not broken, broken
            break
    row = {name: 1.0 if math.isnan(value) else value for name, value in rows[chosen].items()}
    return Conflicts(row, mean, seen, diverged, _words(found["times"][chosen]))


def _words(time: Mapping[str, Any]) -> str:
    if not time["epoch"] and not time["step"]:
        return "before the first step"
    return f"after epoch {time['epoch']}" if time["event"] == "epoch" else f"after step {time['step']}"
