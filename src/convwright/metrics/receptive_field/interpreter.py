"""Follow fields through a network's operator graph, from a scope to the end of a stage or of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import describe, module_path, operator_name, shape_of, sizes_of
from convwright.architecture.labels import Plane, compact
from convwright.architecture.rules.registry import filing
from convwright.metrics.receptive_field.field import Extent, Field, FieldValue, Grid, seed, union, with_labels

Values = FieldValue | None | list["FieldValue | None"]  # None: does not depend on the scope
Rule = Callable[["FieldWalk", fx.Node], Values]
FIELD_RULES: dict[str, Rule] = {}
field_rule = filing(FIELD_RULES)  # by the operators' bare names
APART = "the positions of what it joins do not lie alike"
POINTWISE = "pointwise"  # the name of the rule for operators that torch tags so


@dataclass(frozen=True)
class Window:
    """A window along one spatial axis: of a convolution or a pool."""

    size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0


@dataclass(frozen=True)
class ChannelMixing:
    """Which input channels an output channel reads.

    Attributes:
        outputs: number of output channels.
        groups: as of a grouped convolution; as many as channels: depthwise.
        windows: the input channels of each output, (outputs, window), where they are no groups.
    """

    outputs: int
    groups: int = 1
    windows: Tensor | None = None


@dataclass
class FieldWalk:
    """The fields of every value between a scope and the end of the walk.

    Attributes:
        architecture: the network.
        scope: name of the node whose value is the scope.
        values: by node; absent where a value does not depend on the scope.
        entered: by node, the value that a layer with a kernel or with weights reads.
        overall: operators that see a whole axis (global pooling, attention, flattening into a linear layer) -> how.
        returning: where the value of such an operator meets local ones again (a gate), and was left out.
        statistics: norms whose statistic runs over positions, which is not counted.
        skipped: operators that could not be followed -> why; what comes after them counts as seeing everything.
        instead: by node, what to do in place of its own rule (to judge another kernel without building it).
    """

    architecture: Architecture
    scope: str
    values: dict[str, Values] = field(default_factory=dict)
    entered: dict[str, FieldValue] = field(default_factory=dict)
    overall: dict[str, str] = field(default_factory=dict)
    returning: dict[str, None] = field(default_factory=dict)
    statistics: dict[str, None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    instead: Mapping[str, Callable[[FieldWalk, FieldValue], FieldValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flow = self.architecture.flow
        position = flow.place[self.scope]
        width, size = flow.width(position), flow.size(position, len(shape_of(flow.nodes[position])))
        shape = shape_of(flow.nodes[position])
        channel_axis = 1 if (width, *(size or ())) == shape[1:] or len(shape) < 3 else len(shape) - 1
        self.shape = shape
        self.channels = shape[channel_axis]
        self.lengths = tuple(shape[a] for a in range(1, len(shape)) if a != channel_axis)
        self.values[self.scope] = seed(shape, channel_axis)

    def run(self, positions: Iterable[int]) -> FieldWalk:
        """Follow the nodes at these positions of the flow, in order."""
        for position in positions:
            node = self.architecture.flow.nodes[position]
            if node.op == "call_function" and any(n.name in self.values for n in node.all_input_nodes):
                self.values[node.name] = self.call(node)
        return self

    def call(self, node: fx.Node) -> Values:
        """Return the fields of one node's value."""
        if operator_name(node) == "getitem":
            source = self.values.get(node.all_input_nodes[0].name)
            return source[int(node.args[1])] if isinstance(source, list) else source  # type: ignore[arg-type]
        if not self.inputs(node):
            return None
        if node.name in self.instead:
            return self.instead[node.name](self, self.inputs(node)[0])
        rule = FIELD_RULES.get(operator_name(node))
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = FIELD_RULES[POINTWISE]
        if rule is None:
            return self.skip(node, "there is no rule for this operator")
        return rule(self, node)

    # -------------------------------------------------------------- operands and results

    def value_of(self, operand: Any) -> FieldValue | None:
        """Return the fields of an operand; None if it does not depend on the scope."""
        return self.value_at(operand.name) if isinstance(operand, fx.Node) else None

    def value_at(self, name: str) -> FieldValue | None:
        """Return the fields of a node's (first) value; None if it does not depend on the scope."""
        found = self.values.get(name)
        return found[0] if isinstance(found, list) else found

    def inputs(self, node: fx.Node) -> list[FieldValue]:
        """Return the fields of all operands that depend on the scope."""
        return [v for v in map(self.value_of, node.all_input_nodes) if v is not None]

    def input(self, node: fx.Node) -> FieldValue:
        """Return the fields of the first operand that depends on the scope."""
        return self.inputs(node)[0]

    def results(self, node: fx.Node, make: Callable[[tuple[int, ...], int], FieldValue]) -> Values:
        """Return the value of a node, or the list of its values, from the shapes that torch recorded."""
        meta = node.meta.get("val")
        if isinstance(meta, Sequence):
            return [make(sizes_of(part), i) for i, part in enumerate(meta)]
        return make(shape_of(node), 0)

    def skip(self, node: fx.Node, reason: str) -> Values:
        """Note that an operator cannot be followed; its value counts as seeing the whole scope."""
        self.skipped[node.name] = f"{describe(node)}: {reason}"
        return self.results(node, lambda shape, _: self.everything(shape))

    def see_all(self, node: fx.Node, how: str) -> Values:
        """Note a global operator; its value sees the whole scope."""
        self.note_overall(node, how)
        return self.results(node, lambda shape, _: self.everything(shape))

    def note_overall(self, node: fx.Node, how: str) -> None:
        """Note that an operator sees a whole axis, if what it reads did not."""
        if not self.input(node).whole:
            self.overall.setdefault(node.name, how)

    def everything(self, shape: tuple[int, ...]) -> FieldValue:
        """Return the value of a tensor each element of which sees the whole scope."""
        extents = tuple(Extent().everything(length) for length in self.lengths)
        return FieldValue(shape, (Field(extents, (1 << self.channels) - 1),), None, self.usual_grids(shape))

    def usual_grids(self, shape: tuple[int, ...]) -> tuple[Grid, ...]:
        """Return the axes of a channels-first map; None where a tensor is no such map."""
        rank = len(self.lengths)
        return tuple(2 + k if len(shape) == rank + 2 else None for k in range(rank))

    def path(self, name: str) -> str:
        """Return the module that called the operator of a node."""
        flow = self.architecture.flow
        return module_path(flow.nodes[flow.place[name]]) or name

    # -------------------------------------------------------------- what the rules share

    def on_axes(self, x: FieldValue, axes: Sequence[int]) -> tuple[FieldValue, tuple[int, ...]] | None:
        """Return a value whose spatial axes of the scope lie along these axes, one each.

        Units that lie spread over a channel axis and a spatial one (space to depth) become fields of
        their own per channel.

        Returns:
            The value, and the number of the scope's axis along each of ``axes``; None if they lie otherwise.
        """
        order = []
        for axis in axes:
            found = [k for k, grid in enumerate(x.grids) if x.holds(grid, axis) and k not in order]
            if len(found) > 1:
                return None
            order.append(found[0] if found else -1)
        missing = [k for k in range(len(x.grids)) if k not in order]
        for place, number in enumerate(order):
            if number < 0 and x.shape[axes[place]] == 1 and missing:  # an axis of one position holds no labels
                order[place] = missing.pop(0)
                x = _with_grid(x, order[place], axes[place])
            elif number < 0:
                return None
            elif isinstance(x.grids[number], Plane):
                settled = resolve(x, number, axes[place])
                if settled is None:
                    return None
                x = settled
        return x, tuple(order)

    def slide(
        self, node: fx.Node, x: FieldValue, axes: Sequence[int], kernels: Sequence[Window], shape: tuple[int, ...]
    ) -> FieldValue | None:
        """Let windows slide along axes; None if the units do not lie along them."""
        if x.whole:
            return replace(x, shape=shape, which=_fitted(x.which, shape), grids=self.usual_grids(shape))
        placed = self.on_axes(x, axes)
        if placed is None:
            return None
        x, order = placed
        self.entered[node.name] = x
        by_axis = dict(zip(order, kernels, strict=True))

        def grow(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
            new = tuple(grown(e, by_axis[k]) if k in by_axis else e for k, e in enumerate(extents))
            return extents if all(a is b for a, b in zip(new, extents, strict=True)) else new

        grids: list[Grid] = list(x.grids)
        for axis, number in zip(axes, order, strict=True):
            grids[number] = axis
        return replace(x.changed(grow), shape=shape, grids=tuple(grids))

    def mix(self, x: FieldValue, axis: int, mixing: ChannelMixing) -> FieldValue:
        """Let output channels read input channels along an axis."""
        shape = tuple(mixing.outputs if a == axis else size for a, size in enumerate(x.shape))
        value = replace(x, shape=shape)
        if not x.varies(axis) or x.which is None:
            return value
        if mixing.groups == 1 and mixing.windows is None:
            return self.merged(value, (axis,), x)
        labels = x.which.labels.movedim(axis, -1)
        channels = x.shape[axis]
        if mixing.groups == channels:
            spread = labels.repeat_interleave(mixing.outputs // channels, -1)
            return with_labels(value, Plane(spread.movedim(-1, axis), x.which.axes))
        reads = mixing.windows
        if reads is None:
            per_group = mixing.outputs // mixing.groups
            reads = torch.arange(channels).reshape(mixing.groups, -1).repeat_interleave(per_group, 0)
        fields, codes = _unions(value.fields, labels[..., reads])
        return with_labels(replace(value, fields=fields, which=None), codes.movedim(-1, axis))

    def merged(self, value: FieldValue, axes: Sequence[int], x: FieldValue | None = None) -> FieldValue:
        """Give all elements along some axes the union of their fields; the axes' sizes are those of ``value``."""
        x = value if x is None else x
        if x.which is None or not any(x.varies(axis) for axis in axes):
            return value
        rest = [a for a in range(x.ndim) if a not in axes]
        labels = x.which.labels.permute(*rest, *axes).flatten(len(rest))
        labels = labels.reshape(*labels.shape[: len(rest)], 1, -1)
        fields, codes = _unions(x.fields, labels)
        placed = codes.reshape([x.which.labels.shape[a] if a in rest else 1 for a in range(x.ndim)])
        return with_labels(replace(value, fields=fields), placed)

    def join(self, node: fx.Node, values: Sequence[FieldValue], shape: tuple[int, ...]) -> FieldValue:
        """Return what elementwise operators make of their operands, broadcast from the right."""
        local = [v for v in values if not v.whole]
        if local and len(local) < len(values):
            self.returning.setdefault(node.name)
        values = local or list(values)
        ndim = len(shape)
        lifted = [_lifted(v, ndim) for v in sorted(values, key=lambda v: v.ndim != ndim)]
        grids = tuple(next((g for g in along if g is not None), None) for along in zip(*lifted, strict=True))
        first = values[0]
        if local and any(not agree(_lifted(v, ndim), grids, shape) or _spreads(v, shape) for v in local):
            self.skipped[node.name] = f"{describe(node)}: {APART}"
            return self.everything(shape)
        if all(v.which is None for v in values):
            field = first.fields[0] if len(values) == 1 else union(f for v in values for f in v.fields)
            return FieldValue(shape, (field,), None, grids)
        if len(values) == 1:
            return replace(first, shape=shape, which=_fitted(first.which, shape), grids=grids)
        labels = _labels_side_by_side(values, ndim)
        sizes = torch.broadcast_shapes(*(each.shape for each in labels))  # type: ignore[no-untyped-call]
        stacked = torch.stack([each.expand(sizes) for each in labels], -1)
        fields, codes = _unions(tuple(f for v in values for f in v.fields), stacked)
        return with_labels(FieldValue(shape, fields, None, grids), codes)

    def execute(self, x: FieldValue, node: fx.Node, run: Callable[[Plane], Tensor]) -> FieldValue:
        """Run a shape operator on labels and unit numbers: they land where the values land."""
        shape = shape_of(node)
        which = None if x.which is None else compact(run(x.which))
        grids: list[Grid] = []
        for number in range(len(x.grids)):
            plane = x.plane(number)
            grids.append(None if plane is None else _grid(compact(run(plane)), shape, number, len(x.grids)))
        return settled(with_labels(FieldValue(shape, x.fields, None, tuple(grids)), which))


def settled(x: FieldValue) -> FieldValue:
    """Return a value in which units that were cut out of an axis, in equal steps, are numbered from zero again."""
    for number, grid in enumerate(x.grids):
        if isinstance(grid, Plane) and len(grid.axes) == 1:
            x = resolve(x, number, grid.axes[0]) or x
    return x


@lru_cache(maxsize=4096)
def grown(extent: Extent, kernel: Window) -> Extent:
    """Return an extent after a kernel (remembered: the channels of a tensor share their extents)."""
    return extent.grown(kernel.size, kernel.stride, kernel.dilation, kernel.padding)


def _unions(fields: tuple[Field, ...], labels: Tensor) -> tuple[tuple[Field, ...], Tensor]:
    """Return the union of the fields in each row of labels, and the number of each row's union."""
    rows, codes = torch.unique(labels.flatten(0, -2), dim=0, return_inverse=True)
    found: dict[frozenset[int], Field] = {}
    unions = []
    for row in rows.tolist():
        key = frozenset(row)
        if key not in found:
            found[key] = union(fields[i] for i in sorted(key))
        unions.append(found[key])
    return tuple(unions), codes.reshape(labels.shape[:-1])


def _labels_side_by_side(values: Sequence[FieldValue], ndim: int) -> list[Tensor]:
    """Return the values' labels as tensors of one rank, numbered through."""
    start, found = 0, []
    for value in values:
        labels = torch.zeros([1] * value.ndim, dtype=torch.int64) if value.which is None else value.which.labels
        found.append(labels.reshape([1] * (ndim - value.ndim) + list(labels.shape)) + start)
        start += len(value.fields)
    return found


def _lifted(value: FieldValue, ndim: int) -> tuple[Grid, ...]:
    """Return the grids of a value that is broadcast to ``ndim`` axes."""
    lift = ndim - value.ndim
    if not lift:
        return value.grids
    return tuple(g + lift if isinstance(g, int) else None for g in value.grids)


def agree(a: tuple[Grid, ...], b: tuple[Grid, ...], shape: Sequence[int]) -> bool:
    """Return whether the units of two values of a shape lie alike."""
    return all(_alike(one, other, shape) for one, other in zip(a, b, strict=True))


def _alike(a: Grid, b: Grid, shape: Sequence[int]) -> bool:
    if isinstance(a, Plane) and isinstance(b, Plane):
        return torch.equal(a.labels, b.labels)
    if a is None or b is None:  # an axis of one position is lost where a shape operator moves it
        known = b if a is None else a
        return known is None or (isinstance(known, int) and shape[known] == 1)
    return a == b


def _spreads(x: FieldValue, shape: tuple[int, ...]) -> bool:
    """Return whether one position is broadcast over many."""
    lift = len(shape) - x.ndim
    return any(isinstance(g, int) and x.shape[g] == 1 < shape[g + lift] for g in x.grids)


def _fitted(which: Plane | None, shape: tuple[int, ...]) -> Plane | None:
    """Return labels for a tensor of another shape, if they fit it."""
    if which is None:
        return None
    lift = len(shape) - which.labels.ndim
    if lift < 0:
        return None
    labels = which.labels.reshape([1] * lift + list(which.labels.shape))
    if any(n not in (1, m) for n, m in zip(labels.shape, shape, strict=True)):
        return None
    return Plane(labels, tuple(a + lift for a in which.axes))


def _grid(plane: Plane, shape: tuple[int, ...], number: int, count: int) -> Grid:
    """Return where units lie after a shape operator, as an axis where they lie along it in their order."""
    line, axis = plane.line(), plane.axes[0] if len(plane.axes) == 1 else -1
    if axis >= 0 and torch.equal(line, torch.arange(shape[axis], dtype=line.dtype)):
        return axis
    if not plane.axes:
        usual = number + 2
        return usual if len(shape) == count + 2 and shape[usual] == 1 else None
    return plane


def _with_grid(x: FieldValue, number: int, grid: Grid) -> FieldValue:
    grids = list(x.grids)
    grids[number] = grid
    return replace(x, grids=tuple(grids))


def resolve(x: FieldValue, number: int, axis: int) -> FieldValue | None:
    """Return a value in which the units of one scope axis lie along one tensor axis, in equal steps.

    Where the units also vary along other axes, each place there gets a field of its own, moved by its start.
    """
    plane = x.grids[number]
    assert isinstance(plane, Plane)
    lines = plane.labels.movedim(axis, -1)
    steps = torch.unique(lines[..., 1:] - lines[..., :-1]) if lines.shape[-1] > 1 else torch.ones(1)
    if steps.numel() != 1 or int(steps) < 1 or 0 in plane.axes:
        return None
    starts = lines[..., :1].movedim(-1, axis)
    labels = torch.zeros([1] * x.ndim, dtype=torch.int64) if x.which is None else x.which.labels
    begin, line = torch.unique(starts, return_inverse=True)
    codes = labels * begin.numel() + line
    fields = [_moved(f, number, int(start), int(steps)) for f in x.fields for start in begin.tolist()]
    return with_labels(_with_grid(replace(x, fields=tuple(fields), which=None), number, axis), codes)


def _moved(field: Field, number: int, start: int, step: int) -> Field:
    extents = list(field.extents)
    old = extents[number]
    if not old.whole:
        extents[number] = replace(old, first=old.first + start * old.step, step=old.step * step)
    return Field(tuple(extents), field.channels, field.box)
