"""Width: change how many channels a group has, both ways, with the weights kept.

Shrinking keeps the most important channels. Growing repeats channels in place and divides what their consumers
take by the number of copies (Net2Wider, Chen et al. 2016), so the function stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import Capture
from convwright.architecture.channels import ChannelGraph, ChannelGroup, Ints, resize
from convwright.architecture.labels import ResizeError
from convwright.edits.compensate import (
    compensate,
    exact_sizes,
    gained_parameters,
    grows_by_zeros,
    inexact_reasons,
    silence_inputs,
    silent_axes,
)
from convwright.edits.constraints import Divisor, DivisorLike, check_widths, multiple_of
from convwright.edits.edit import Edit, Measured, Moved, Options, Outcome, carries_out
from convwright.edits.equivalence import Run, measure
from convwright.edits.fake_run import Repairs, TrialNetwork, UnrepairableError, repaired, store
from convwright.edits.importance import scores_for
from convwright.edits.remap import ChannelRemap, Take, recipe, signatures
from convwright.edits.rerun import changing_axes, executed
from convwright.edits.surgery import MOST_CHANNELS, check_room, mask, operate, tensors_in
from convwright.errors import EditError


@dataclass(frozen=True)
class Width(Edit):
    """Give a channel group a new size.

    Attributes:
        target: a layer (its whole output) or a group by name (``"conv[0:32]"``).
        size: the new number of channels there.
        keep: which old channels stay, by group name; chosen by importance when empty. Written into the
            resulting plan when the importance was not a named one, so that the plan replays alike.
        repairs: sizes that modules store beside their tensors and that had to follow, as
            ``{"module.attribute": value}``. Found when the edit is applied; part of the resulting plan.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> new = arch.apply(cw.Width("layer1.0.conv1", 24))
        >>> new.group("layer1.0.conv1").size, new.changes[0].exact
        (24, True)
    """

    kind: ClassVar[str] = "width"

    target: str
    size: int
    keep: Mapping[str, Sequence[int]] | None = None
    repairs: Mapping[str, int | list[int]] | None = None


# ------------------------------------------------------------------ from edits to sizes


@dataclass(frozen=True, eq=False)
class Sizes:
    """The solved sizes of all groups.

    Attributes:
        units: new number of channels (components) of each group of the architecture.
        after: the channel analysis under these sizes.
        coupled: per edit, the groups that had to change along.
    """

    units: Ints
    after: ChannelGraph
    coupled: tuple[tuple[str, ...], ...]


def solve(architecture: Architecture, edits: Sequence[Width], divisor: DivisorLike = 1) -> Sizes:
    """Find sizes for all groups that carry out the edits and keep equal parts equal.

    Raises:
        EditError: if a target is unknown or frozen, a size is impossible or breaks a constraint of the user, or the
            network cannot be followed with the sizes.
    """
    graph = architecture.channels
    wanted: dict[int, int] = {}
    owned, coupled = [], []
    for edit in edits:
        own = _targets(architecture, edit)
        owned.append([graph.index[group.name] for group in own])
        wanted |= _shares(graph, own, edit, divisor)
        tied = {name for group in own for name in group.tied} - {group.name for group in own}
        coupled.append(tuple(n for n in graph.index if n in tied))
    units = graph.units.copy()
    units[list(wanted)] = list(wanted.values())
    units = _carry_ties(graph, units, set(wanted))
    units, after = _followed(architecture, units, owned)
    check_widths(graph.groups, [int(u) * g.step for u, g in zip(units, graph.groups, strict=True)])
    return Sizes(units, after, tuple(coupled))


def _targets(architecture: Architecture, edit: Width) -> list[ChannelGroup]:
    graph = architecture.channels
    whole = edit.target not in graph.index
    found = architecture.layer(edit.target).groups if whole else (edit.target,)
    if not found:
        raise EditError(f"{edit.target} has no channels to change (an axis of size 1 carries none).")
    groups = [graph.group(name) for name in found]
    frozen = next((group for group in groups if group.frozen), None)
    if frozen is not None:
        raise EditError(f"{edit.target} cannot change: its channels are frozen, {frozen.reason}.")
    return groups


def _shares(graph: ChannelGraph, groups: list[ChannelGroup], edit: Width, divisor: DivisorLike) -> dict[int, int]:
    if not isinstance(edit.size, int) or isinstance(edit.size, bool) or edit.size < 1:
        raise EditError(f"the width of {edit.target} must be a whole number from 1 on, not {edit.size!r}.")
    if edit.size > MOST_CHANNELS:
        raise EditError(f"the width of {edit.target} cannot be {edit.size}: more than {MOST_CHANNELS} channels.")
    if len(groups) == 1:
        size = round_width(edit.size, groups[0], divisor, strict=Divisor.of(divisor) == Divisor(1))
        return {graph.index[groups[0].name]: size // groups[0].step}
    ends = np.cumsum([g.size for g in groups])
    bounds = np.floor(ends * edit.size / ends[-1] + 0.5).astype(int)
    sizes = np.diff(bounds, prepend=0)
    return {
        graph.index[g.name]: max(1, int(s)) if g.step == 1 else round_width(max(1, int(s)), g, 1) // g.step
        for g, s in zip(groups, sizes, strict=True)
    }


def round_width(size: float, group: ChannelGroup, divisor: DivisorLike = 1, strict: bool = False) -> int:
    """Round a width to what a group can have.

    Args:
        size: the wanted width.
        group: its group; its ``step`` is always obeyed.
        divisor: also round to multiples of this, unless that would grow a group that shrinks; ``"auto"``: of what
            kernels like at the group's size.
        strict: raise instead of rounding.

    Raises:
        EditError: if ``strict`` and the size is not possible as it is.
    """
    given = Divisor.of(divisor)
    step = multiple_of(group, given)
    if given.stated:  # a group that grows takes up the divisor, however small it is
        step = math.lcm(group.step, given.stated if strict else given.wanted(group))
    if group.size < step and size <= group.size:
        step = group.step
    rounded = max(step, int(size / step + 0.5) * step)
    if strict and rounded != size:
        raise EditError(f"{group.name} can have multiples of {step} channels, not {size:g}; the nearest is {rounded}.")
    return rounded


def _carry_ties(graph: ChannelGraph, units: Ints, wanted: set[int]) -> Ints:
    """Scale groups tied to wanted ones in proportion, by cumulative rounding along producing axes.

    Rounding group by group would let the halves of a split drift apart; rounding the running sum keeps
    every producing layer's total in proportion.
    """
    units = units.copy()
    done: set[int] = set()
    for first in sorted(wanted, key=lambda i: -graph.groups[i].size):
        if first in done:
            continue
        family = {graph.index[n] for n in graph.groups[first].tied} | {first}
        done |= family
        if family <= wanted:
            continue
        ratio = units[first] / graph.units[first]
        _scale_along_producers(graph, units, family, family - wanted, ratio)
    return units


def _scale_along_producers(graph: ChannelGraph, units: Ints, family: set[int], pending: set[int], ratio: float) -> None:
    for labels, _ in graph.follower.ledger.produced:
        if not pending:
            return
        channels = graph.channels_of(labels)
        row = dict.fromkeys(graph.group_of[channels[channels >= 0]].tolist())
        before = after = 0
        for index in (each for each in row if each in family):
            before += int(graph.units[index])
            if index in pending:
                units[index] = max(0, math.floor(before * ratio + 0.5) - after)
                pending.discard(index)
            after += int(units[index])
    for index in pending:
        units[index] = max(1, math.floor(int(graph.units[index]) * ratio + 0.5))


def _followed(architecture: Architecture, units: Ints, owned: Sequence[list[int]]) -> tuple[Ints, ChannelGraph]:
    """Walk the graph with the sizes; take over what ties made of the sizes that were left open.

    Of the groups that an edit owns, those of its target, the sum is what was asked for.
    """
    graph = architecture.channels
    after = _resized(graph, units)
    if any(node.name not in graph.follower.changing_axes for node in after.follower.guessed):
        graph.follower.changing_axes.update(_observed(architecture, after))
        after = _resized(graph, units)
    known = {signature: graph.index[group.name] for signature, group in signatures(graph).items()}
    observed = np.zeros_like(units)
    for signature, group in signatures(after).items():
        index = known.get(signature)
        if index is None or (graph.units[index] and not group.units):
            raise EditError(
                f"with these widths, channels of {group.name} would reach layers, or groups of a grouped operator, "
                "that they do not reach now."
            )
        observed[index] = group.units
    steps = np.array([group.step for group in graph.groups])
    wrong = [own[0] for own in owned if ((observed - units) * steps)[own].sum()]
    wrong += [i for i in np.flatnonzero(observed != units).tolist() if not graph.groups[i].tied]
    for index in wrong[:1]:
        tied = graph.groups[index].tied
        why = "it moves with others, by equal shares" if tied else "a constant in the network fixes it"
        raise EditError(
            f"{graph.groups[index].name} would get {observed[index] * steps[index]} channels instead of "
            f"{units[index] * steps[index]}: {why}."
        )
    return observed, after


def _resized(graph: ChannelGraph, units: Ints) -> ChannelGraph:
    try:
        return resize(graph, units)
    except ResizeError as error:
        raise EditError(f"these widths do not fit together: {error}.") from error


def _observed(architecture: Architecture, after: ChannelGraph) -> dict[str, int]:
    """Run the network with these widths, and see which axis of a reshape that was guessed takes the change."""
    graph = architecture.channels
    lengths = {axis: len(after.axis_labels(axis)) for axis in graph.follower.atoms}
    takes = {
        axis: Take(np.zeros(length, dtype=np.int64), np.ones(length, dtype=np.int64))
        for axis, length in lengths.items()
        if length != len(graph.axis_labels(axis))
    }
    shapes = ChannelRemap(graph, after, {}, takes, np.zeros(0, dtype=np.int64))
    hollow, _ = operate(architecture.model, shapes, hollow=True)
    return changing_axes(architecture, hollow, after.follower.guessed)


# ------------------------------------------------------------------ carrying out


@dataclass(frozen=True, eq=False)
class WidthSurgery:
    """New sizes for channel groups, and the stored sizes that follow them."""

    recipe: ChannelRemap
    repairs: Repairs

    def operate(self, model: nn.Module) -> tuple[nn.Module, dict[int, Moved]]:
        """Cut and repeat channels in a copy."""
        changed, moved = operate(model, self.recipe)
        store(changed, self.repairs)
        compensate(model, changed, self.recipe)
        return changed, moved

    def promise(self, model: nn.Module) -> Run:
        """Return the original without what its consumers take from dropped channels."""
        mask(model, self.recipe, besides=silence_inputs(model, self.recipe))
        if not self.recipe.before.follower.capture.free_outputs:
            return model
        return lambda *args, **kwargs: self._left(model(*args, **kwargs))

    def _left(self, output: object) -> list[Tensor]:
        """Return what leaves a backbone as the changed one gives it: of each map, the channels kept or repeated."""
        nodes = self.recipe.before.follower.capture.graph.output_node().args[0]
        found = []
        for node, tensor in zip(nodes, tensors_in(output), strict=True):  # type: ignore[arg-type]
            takes = [(axis, self.recipe.take_of(node.name, axis, summed=False)) for axis in range(tensor.ndim)]
            for axis, take in takes:
                tensor = tensor if take is None else take.of(tensor, axis, divide=False)
            found.append(tensor)
        return found


@carries_out(Width)
def carry_out(architecture: Architecture, edits: Sequence[Width], options: Options) -> Outcome:
    """Carry out width edits in one operation on a copy of the model."""
    try:
        sizes = solve(architecture, edits, options.divisor)
    except EditError as error:
        raise EditError(f"{error}{_nearest(architecture, edits)}") from error
    _check_room(architecture, sizes.units, len(edits), options)
    chosen = _choose(architecture, sizes.units, edits, options)
    copied = (architecture.channels.group(name) for name, ranks in chosen.items() if len({*ranks}) < len(ranks))
    appended = [group.name for group in copied if grows_by_zeros(group)]
    plan = recipe(architecture.channels, sizes.after, chosen, appended)
    plan = replace(plan, gained=gained_parameters(plan))
    plan = replace(plan, silent=silent_axes(plan, appended)) if appended else plan
    surgery, model, moved, found = _operated(architecture, edits, sizes.units, plan)
    difference = measure(architecture, surgery) if options.verify else None
    decided = [_decided(architecture, e, sizes.units, plan, options) for e in edits]
    return Outcome(
        model=model,
        edits=(*decided[:-1], replace(decided[-1], repairs=surgery.repairs or None)),
        max_difference=difference,
        steps=_costs(architecture, edits, sizes),
        coupled=sizes.coupled,
        notes=tuple(_notes(architecture, e, plan, difference) for e in edits),
        moved=moved,
        takes={axis: take.index for axis, take in plan.takes.items()},
        keeps=tuple(_only_grows(architecture, e, c, plan) for e, c in zip(edits, sizes.coupled, strict=True)),
        capture=found,
    )


def _only_grows(architecture: Architecture, edit: Width, coupled: Sequence[str], plan: ChannelRemap) -> bool:
    """Whether no group that an edit changes loses a channel."""
    changed = {*(group.name for group in _targets(architecture, edit)), *coupled} & plan.chosen.keys()
    return all(len(plan.chosen[name]) >= architecture.channels.group(name).units for name in changed)


def _nearest(architecture: Architecture, edits: Sequence[Width]) -> str:
    """Return the nearest size that the layer can have as a whole, if parts of it move together; else nothing."""
    target = edits[0].target
    group = architecture.channels.index.get(target)
    if len(edits) > 1 or (group is not None and not architecture.groups[group].tied):
        return ""
    layer = target.partition("[")[0]
    whole = sum(g.size for g in architecture.groups if g.name.partition("[")[0] == layer)
    now = architecture.group(target).size if group is not None else whole
    wanted = round(whole * edits[0].size / max(now, 1))
    for offset in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        with suppress(EditError):
            if wanted + offset not in (0, whole):
                solve(architecture, [Width(layer, wanted + offset)])
                return f' Change the layer as a whole, such as Width("{layer}", {wanted + offset}).'
    return ""


def _check_room(architecture: Architecture, units: Ints, count: int, options: Options) -> None:
    graph = architecture.channels
    widths = {g.name: int(units[graph.index[g.name]]) * g.step for g in architecture.free_groups}
    model = architecture.cost_model()
    before, after = int(model.weight_bytes({})), int(model.weight_bytes(widths))
    check_room(before, after, options.verify, f"{count} width edits")


def _operated(
    architecture: Architecture, edits: Sequence[Width], units: Ints, plan: ChannelRemap
) -> tuple[WidthSurgery, nn.Module, dict[int, Moved], Capture | None]:
    """Cut and repeat channels in a copy, and run it; where that is not as predicted, find stored sizes that follow."""
    given = {name: value for edit in edits for name, value in (edit.repairs or {}).items()}
    surgery = WidthSurgery(plan, given)
    with suppress(Exception):  # a weight that is computed from others runs the user's own code
        model, moved = surgery.operate(architecture.model)
        if (found := executed(architecture, model, plan.after)) is not None:
            return surgery, model, moved, found
    try:
        repairs = repaired(TrialNetwork.of(architecture), units, lambda: plan, given) if plan.takes else {}
    except UnrepairableError as error:
        raise UnrunnableWidthsError(error) from error
    surgery = WidthSurgery(plan, repairs)
    return surgery, *surgery.operate(architecture.model), None


class UnrunnableWidthsError(EditError):
    """The network's own code does not run with these widths.

    Attributes:
        what: where it stops.
        near: groups at that place, which may have to change together; none where a layer's kind keeps the width.
    """

    def __init__(self, cause: UnrepairableError) -> None:
        self.what = f"the network does not run with these widths: {cause}."
        self.near = () if cause.held else tuple(cause.near)
        concerned = ", ".join(cause.groups[:4]) or "unknown"
        written = "A size is written down there; take it from a tensor's shape instead, or leave"
        super().__init__(f"{self.what} {'Leave' if cause.held else written} these channels as they are: {concerned}.")


def _choose(architecture: Architecture, units: Ints, edits: Sequence[Width], options: Options) -> dict[str, Ints]:
    """Pick, for every group that changes, the old channel behind each new one."""
    keep = {name: ranks for e in edits for name, ranks in (e.keep or {}).items()}
    for name, ranks in keep.items():
        group = architecture.group(name)
        if units[architecture.channels.index[group.name]] >= group.units and sorted(ranks) != list(range(group.units)):
            raise EditError(f"it says which channels of {name} to keep, and {name} loses none; take that out.")
    chosen, now = {}, architecture.channels.units
    for group, before, after in zip(architecture.groups, now.tolist(), units.tolist(), strict=True):
        if before == after:
            continue
        if after > before and grows_by_zeros(group):
            chosen[group.name] = np.arange(after, dtype=np.int64) % before
        elif after > before:
            chosen[group.name] = np.arange(after, dtype=np.int64) * before // after
        elif group.name in keep:
            chosen[group.name] = _given(group, keep[group.name], after)
        else:
            scores = scores_for(options.importance, group, architecture)
            best = np.argsort(-scores, kind="stable")[:after]
            chosen[group.name] = np.sort(best).astype(np.int64)
    return chosen


def _given(group: ChannelGroup, ranks: Sequence[int], count: int) -> Ints:
    chosen = np.unique(np.asarray(ranks, dtype=np.int64))
    if len(chosen) != count or chosen[0] < 0 or chosen[-1] >= group.units:
        raise EditError(f"{group.name} must keep {count} different channels below {group.units}, got {list(ranks)}.")
    return chosen


def _decided(architecture: Architecture, edit: Width, units: Ints, plan: ChannelRemap, options: Options) -> Width:
    """Fill in the size after rounding, and the channels if it was not the default importance that chose them."""
    graph, groups = architecture.channels, _targets(architecture, edit)
    keep = edit.keep
    if keep is None and options.importance != "l2":  # plans replay by l2
        family = {name for g in groups for name in (g.name, *g.tied)}
        picked = {n: r.tolist() for n, r in plan.chosen.items() if n in family}
        keep = {n: r for n, r in picked.items() if len(r) < graph.group(n).units} or None
    return Width(edit.target, sum(int(units[graph.index[g.name]]) * g.step for g in groups), keep)


def _costs(architecture: Architecture, edits: Sequence[Width], sizes: Sizes) -> tuple[tuple[int, int], ...]:
    model = architecture.cost_model()
    index = architecture.channels.index
    current = {g.name: g.size for g in architecture.free_groups}
    steps = []
    for edit, coupled in zip(edits, sizes.coupled, strict=True):
        for name in (*(group.name for group in _targets(architecture, edit)), *coupled):
            current[name] = int(sizes.units[index[name]]) * architecture.channels.group(name).step
        steps.append((int(model.macs(current)), int(model.params(current))))
    return tuple(steps)


def _notes(architecture: Architecture, edit: Width, plan: ChannelRemap, difference: Measured | None) -> tuple[str, ...]:
    """Say why an inexact edit is inexact. Edits of one call are measured together: another's reason may be its own."""
    if difference is None or difference.exact:
        return ()
    family = {name for g in _targets(architecture, edit) for name in (g.name, *g.tied)}
    reasons = [(name, reason) for name in plan.chosen for reason in inexact_reasons(plan, name)]
    reasons = reasons or [  # such as one that others share, which did not change alike
        (name, f"a statistic runs across these channels: {operator}")
        for name in plan.chosen
        for operator in plan.before.group(name).across
    ]
    own = [reason for name, reason in reasons if name in family]
    changed = [(plan.before.group(n), len(r)) for n, r in plan.chosen.items() if n in family or not own]
    sizes = exact_sizes((group, units * group.step) for group, units in changed)
    return (*dict.fromkeys(own or [reason for _, reason in reasons]), *sizes)
