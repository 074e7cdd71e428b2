"""A plan for a person: per edit what it does, what changes along and why, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from convwright.architecture import Architecture, ChannelGroup
from convwright.architecture.layers import per_axis
from convwright.edits.compensate import moved_statistics
from convwright.edits.depth import AddBlock, RemoveBlock
from convwright.edits.edit import Edit, Options
from convwright.edits.kernel import Kernel, kernel_size
from convwright.edits.plan import Passage, Plan, check_made_for, passages
from convwright.edits.replace import Replace
from convwright.edits.resolution import Resolution
from convwright.edits.summary import operator_words, shape_words, summary
from convwright.edits.width import Sizes, Width, solve
from convwright.tables import brief

_SHOWN = 6  # names in a line of text


@dataclass(frozen=True)
class GroupChange:
    """One channel group that a width edit changes.

    Attributes:
        name: the group.
        before: its size.
        after: its new size.
        tied: whether it changes along because equal parts are cut from one tensor, and is not named by the edit.
        written: layers that produce its channels.
        joined: additions and products that make the channels of several layers one.
        along: norms, depthwise convolutions and the like, with one entry per channel.
        read: layers that sum over its channels.
    """

    name: str
    before: int
    after: int
    tied: bool
    written: tuple[str, ...]
    joined: tuple[str, ...]
    along: tuple[str, ...]
    read: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield text: the size, and the layers that are coupled with the reason."""
        why = ", in proportion: equal parts are cut from one tensor" if self.tied else ""
        yield f"channels of {self.name}: {self.before} -> {self.after}{why}"
        for what, names in (
            ("written by", self.written),
            ("joined at", self.joined),
            ("one entry per channel in", self.along),
            ("read by", self.read),
        ):
            if names:
                yield f"  {what} {brief(names, _SHOWN)}"


@dataclass(frozen=True)
class Step:
    """One edit of a plan, with what it changes.

    Attributes:
        number: its place in the plan, from 1 on.
        edit: the edit.
        target: the layer, block or group; empty for the whole network.
        before: what is there, e.g. ``64`` or ``3x3``.
        after: what comes, e.g. ``48`` or ``5x5``.
        groups: the channel groups that a width edit changes.
        repairs: sizes stored on modules that follow, ``"module.attribute"`` -> new value. Edits that stand
            together are repaired together; the last of them has the repairs.
        approximate: the function is not kept exactly, by the kind of edit.
        notes: what a person should know.
        macs: multiply-accumulates per sample before and after.
        params: parameters before and after.
    """

    number: int
    edit: Edit
    target: str
    before: str
    after: str
    groups: tuple[GroupChange, ...]
    repairs: Mapping[str, int | list[int]]
    approximate: bool
    notes: tuple[str, ...]
    macs: tuple[int, int]
    params: tuple[int, int]

    @property
    def headline(self) -> str:
        """The edit in one line: ``1. width layer1.0.conv1: 64 -> 48``."""
        kind = self.edit.kind.replace("_", " ")
        where = f"{kind} {self.target}" if self.target else kind
        mark = "  (approximate)" if self.approximate else ""
        return f"{self.number}. {where}: {self.before} -> {self.after}{mark}"

    def lines(self) -> tuple[str, ...]:
        """Return text below the headline."""
        found = [line for group in self.groups for line in group.lines()]
        found += [f"stored size {name.removeprefix('.')} becomes {value}" for name, value in self.repairs.items()]
        return (*found, *self.notes, costs(self.macs, self.params))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **vars(self),
            "edit": self.edit.to_dict(),
            "groups": [asdict(group) for group in self.groups],
            "repairs": dict(self.repairs),
            "notes": list(self.notes),
            "macs": list(self.macs),
            "params": list(self.params),
        }


def preview(architecture: Architecture, edits: Plan | Sequence[Edit]) -> tuple[Step, ...]:
    """Say what edits would do, one step per edit, without measuring anything.

    Args:
        architecture: the network that they are for; it stays as it is.
        edits: a plan or its edits.

    Returns:
        The steps; ``tree`` makes text of them.

    Raises:
        EditError: if an edit is refused, with its number; or if the plan is for another network.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> step, = cw.edits.preview(arch, [cw.Width("layer1.0.conv1", 8)])
        >>> step.headline
        '1. width layer1.0.conv1: 16 -> 8'
    """
    if isinstance(edits, Plan):
        check_made_for(edits, architecture)
        edits = edits.edits
    steps: list[Step] = []
    for passage in passages(architecture, edits, Options(verify=False), numbered=True):
        steps += _steps(passage, len(steps) + 1)
    return tuple(steps)


def tree(steps: Sequence[Step]) -> str:
    """Return the steps as text, with the total in the last line."""
    lines = []
    for step in steps:
        lines += [step.headline, *(f"   {line}" for line in step.lines())]
    return "\n".join([*lines, total(steps)])


def total(steps: Sequence[Step]) -> str:
    """Return what all steps change together."""
    if not steps:
        return "no edits"
    first, last = steps[0], steps[-1]
    return f"in total: {costs((first.macs[0], last.macs[1]), (first.params[0], last.params[1]))}"


def costs(macs: tuple[int, int], params: tuple[int, int]) -> str:
    """Return MACs and parameters before and after, as text."""
    return f"MACs {_amounts(*macs)}, parameters {_amounts(*params)}"


def _steps(passage: Passage, first: int) -> Iterator[Step]:
    run = _Run(passage, passage.before)
    changes = passage.after.changes[len(passage.before.changes) :]
    for i, (given, change) in enumerate(zip(passage.edits, changes, strict=True)):
        step = Step(
            number=first + i,
            edit=change.edit,
            target=str(getattr(change.edit, "target", "")),
            before="",
            after=summary(change.edit),
            groups=(),
            repairs={},
            approximate=bool(getattr(given, "approximate", False) or getattr(change.edit, "approximate", False)),
            notes=change.notes,
            macs=change.macs,
            params=change.params,
        )
        yield replace(step, **_told(run, change.edit, i))


@dataclass(frozen=True)
class _Run:
    """A run of edits of one kind, with what several of them need to know."""

    passage: Passage
    before: Architecture

    @cached_property
    def sizes(self) -> Sizes:
        return solve(self.before, [e for e in self.passage.outcome.edits if isinstance(e, Width)])

    def change(self, group: ChannelGroup, tied: bool) -> GroupChange:
        after = int(self.sizes.units[self.before.channels.index[group.name]]) * group.step
        written = _layers_of(group, "out")
        joined = self.joins.get(group.name, ()) if len(written) > 1 else ()
        return GroupChange(
            group.name, group.size, after, tied, written, joined, _layers_of(group, "along"), _layers_of(group, "in")
        )

    @cached_property
    def joins(self) -> dict[str, tuple[str, ...]]:
        """Group -> the elementwise layers that several values of it meet in."""
        found: dict[str, tuple[str, ...]] = {}
        for layer in self.before.layers:
            same = [shape for shape in layer.input_shapes if shape == layer.output_shape]
            if layer.kind == "elementwise" and len(same) > 1:
                for name in layer.groups:
                    found[name] = (*found.get(name, ()), layer.name)
        return found


def _layers_of(group: ChannelGroup, role: str) -> tuple[str, ...]:
    names = (m.tensor.rpartition(".")[0] or m.tensor for m in group.members if m.role == role)
    others = {m.tensor.rpartition(".")[0] for m in group.members if m.role == "out"} if role == "along" else set()
    return tuple(name for name in dict.fromkeys(names) if name not in others)


def _width(run: _Run, edit: Width, place: int) -> dict[str, Any]:
    arch, outcome = run.before, run.passage.outcome
    own = (edit.target,) if edit.target in arch.channels.index else arch.layer(edit.target).groups
    groups = [arch.channels.group(name) for name in own]
    coupled = [arch.channels.group(name) for name in outcome.coupled[place] if name not in own]
    changed = tuple(
        change
        for change in (run.change(group, group in coupled) for group in (*groups, *coupled))
        if change.before != change.after
    )
    sizes = {change.name: change.after for change in changed}
    moved = [r for g in (*groups, *coupled) if g.name in sizes for r in moved_statistics(g, sizes[g.name])]
    return {
        "before": str(sum(group.size for group in groups)),
        "after": str(edit.size),
        "groups": changed,
        "repairs": dict(edit.repairs or {}),
        "approximate": bool(moved),
        "notes": (
            *((f"keeps {', '.join(edit.keep)} channels as listed",) if edit.keep else ()),
            *dict.fromkeys(moved),
        ),
    }


def _told(run: _Run, edit: Edit, place: int) -> dict[str, Any]:
    if isinstance(edit, Width):
        return _width(run, edit, place)
    if isinstance(edit, RemoveBlock):
        block = run.before.block(edit.target)
        what = f"{block.kind} block of {len(block.layers)} layers"
        return {"before": what, "after": "removed, its input goes on"}
    if isinstance(edit, AddBlock):
        what = f"1 {run.before.block(edit.target).kind} block"
        copies = f"{edit.copies} {'copy' if edit.copies == 1 else 'copies'} behind it, beginning as the identity"
        return {"before": what, "after": str(1 + edit.copies), "notes": (copies,)}
    if isinstance(edit, Kernel):
        before = kernel_size(run.before, run.before.layer(edit.target))
        after = per_axis(edit.size, len(before))
        rim = "the rim is cropped" if after < before else "zeros around the old kernel"
        return {"before": shape_words(before), "after": shape_words(after), "notes": (rim,)}
    if isinstance(edit, Replace):
        layer = run.before.layer(edit.target)
        return {"before": layer.module or layer.operator, "after": operator_words(edit)}
    if isinstance(edit, Resolution):
        shape = run.before.example_input.shape
        words = shape_words((shape[1], *per_axis(edit.size, len(shape) - 2)))
        return {"before": shape_words(shape[1:]), "after": words, "notes": ("the weights stay as they are",)}
    return {}


def _amounts(before: int, after: int) -> str:
    change = f" ({(after - before) / before:+.1%})" if before and after != before else ""
    return f"{before:,} -> {after:,}{change}" if after != before else f"{before:,} (unchanged)"
