"""How shape operators move receptive fields: they are executed on the labels, which land where the values land."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from convwright.architecture.capture.exported import argument, as_dims, module_class, operator_name, shape_of, sizes_of
from convwright.architecture.labels import Plane, full, reshape_blocks
from convwright.layers.rolling_pointwise import RollingPointwiseConv2d
from convwright.metrics.receptive_field.field import Field, FieldValue, Grid, with_labels, without_axes
from convwright.metrics.receptive_field.interpreter import APART, FieldWalk, Values, agree, field_rule, settled


@field_rule("slice", "narrow", "select")
def shape_operator(walk: FieldWalk, node: fx.Node) -> Values:
    """Run the operator itself on the labels: they land, or are cut, where the values are."""
    x = walk.input(node)
    rest, options = list(node.args[1:]), dict(node.kwargs)
    if x.whole and x.which is None:
        return walk.results(node, lambda shape, _: replace(x, shape=shape, grids=walk.usual_grids(shape)))
    return walk.execute(x, node, lambda p: node.target(full(p, x.shape), *rest, **options))  # type: ignore[operator]


@field_rule("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "mT", "numpy_T", "unsqueeze")
def reorder(walk: FieldWalk, node: fx.Node) -> Values:
    """Reorder the labels' axes; those along which they do not vary may stay at size 1."""
    x = walk.input(node)
    rest, options = list(node.args[1:]), dict(node.kwargs)
    return walk.execute(x, node, lambda plane: node.target(plane.labels, *rest, **options))  # type: ignore[operator]


@field_rule("view", "reshape", "_unsafe_view", "unflatten", "reshape_as", "view_as", "_reshape_alias", "flatten")
def reshape(walk: FieldWalk, node: fx.Node) -> Values:
    """Reshape the labels to the shape that torch recorded."""
    x, shape = walk.input(node), shape_of(node)
    blocks = reshape_blocks(x.shape, shape)

    def run(plane: Plane) -> Tensor:
        # Only the axes that are cut or merged together with one along which labels vary need their full size.
        before, after = [1] * x.ndim, [1] * len(shape)
        for inside, outside in blocks:
            if any(a in plane.axes for a in inside):
                for axis in inside:
                    before[axis] = x.shape[axis]
                for axis in outside:
                    after[axis] = shape[axis]
        return plane.labels.expand(before).reshape(after)

    return walk.execute(x, node, run)


@field_rule("expand", "expand_as", "broadcast_to")
def expand(walk: FieldWalk, node: fx.Node) -> Values:
    """Broadcast: elements of new axes are alike."""
    return walk.join(node, [walk.input(node)], shape_of(node))


@field_rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(walk: FieldWalk, node: fx.Node) -> Values:
    """Cut labels where values are cut."""
    x = walk.input(node)
    axis = int(argument(node, "dim", 0)) % x.ndim
    shapes = [sizes_of(part) for part in node.meta["val"]]
    starts = itertools.accumulate([shape[axis] for shape in shapes], initial=0)
    return [_cut(x, axis, start, shape) for start, shape in zip(starts, shapes, strict=False)]


def _cut(x: FieldValue, axis: int, start: int, shape: tuple[int, ...]) -> FieldValue:
    value = replace(x, shape=shape)
    if x.varies(axis) and x.which is not None:
        labels = x.which.labels.narrow(axis, start, shape[axis])
        value = with_labels(replace(value, which=None), labels)
    if any(x.holds(grid, axis) for grid in x.grids):
        grids = tuple(_cut_grid(x, k, axis, start, shape[axis]) for k in range(len(x.grids)))
        value = settled(replace(value, grids=grids))
    return value


def _cut_grid(x: FieldValue, number: int, axis: int, start: int, size: int) -> Grid:
    plane = x.plane(number)
    if plane is None or axis not in plane.axes:
        return x.grids[number]
    return Plane(plane.labels.narrow(axis, start, size), plane.axes)


@field_rule("unbind")
def unbind(walk: FieldWalk, node: fx.Node) -> Values:
    """Take an axis apart."""
    x = walk.input(node)
    axis = int(argument(node, "dim", 0)) % x.ndim
    one = tuple(1 if a == axis else s for a, s in enumerate(x.shape))
    return [
        without_axes(_cut(x, axis, index, one), [axis], sizes_of(part), False)
        for index, part in enumerate(node.meta["val"])
    ]


@field_rule("cat", "concat", "concatenate", "stack")
def concatenate(walk: FieldWalk, node: fx.Node) -> Values:
    """Labels follow each other; parts that do not depend on the scope see nothing."""
    ndim = len(shape_of(node))
    axis = int(argument(node, "dim", 0)) % ndim
    stacked = operator_name(node) == "stack"
    operands = [n for n in node.args[0] if stacked or len(shape_of(n)) == ndim]  # type: ignore[union-attr,arg-type]
    values = [walk.value_of(n) for n in operands]
    known = [v for v in values if v is not None]
    local = [v for v in known if not v.whole]
    if local and len(local) < len(known):
        walk.returning.setdefault(node.name)
    empty = Field((local or known)[0].fields[0].extents, 0)
    fields = [empty]
    found, varying = [], set() if stacked else {axis}
    for operand, value in zip(operands, values, strict=True):
        shape = list(shape_of(operand))  # type: ignore[arg-type]
        labels = torch.zeros([1] * len(shape), dtype=torch.int64)
        if value is not None:
            labels = (labels if value.which is None else value.which.labels) + len(fields)
            fields.extend(value.fields)
        varying.update(a for a in range(len(shape)) if labels.shape[a] > 1)
        found.append((labels, shape))
    parts = [labels.expand([s if a in varying else 1 for a, s in enumerate(shape)]) for labels, shape in found]
    joined = torch.stack(parts, axis) if stacked else torch.cat(parts, axis)
    grids = _grids_joined(local or known, values, found, axis, stacked)
    if grids is None:
        return walk.skip(node, APART)
    return with_labels(FieldValue(shape_of(node), tuple(fields), None, grids), joined)


def _grids_joined(
    known: Sequence[FieldValue], values: Sequence[FieldValue | None], parts: Sequence[tuple[Tensor, list[int]]],
    axis: int, stacked: bool,
) -> tuple[Grid, ...] | None:  # fmt: skip
    """Return where units lie after values were put one after another; None if they lay differently."""
    first = min(known, key=lambda v: v.grids.count(None))
    if any(not v.whole and not agree(v.grids, first.grids, first.shape) for v in known):
        return None
    if stacked or first.whole or not any(first.holds(grid, axis) for grid in first.grids):
        return tuple(g + (stacked and g >= axis) if isinstance(g, int) else None for g in first.grids)
    grids: list[Grid] = list(first.grids)
    for number in (k for k, grid in enumerate(first.grids) if first.holds(grid, axis)):
        planes = [None if v is None else v.plane(number) for v in values]
        varying = {axis}.union(*(p.axes for p in planes if p is not None))
        lines = []
        for plane, (_, shape) in zip(planes, parts, strict=True):
            labels = torch.full([1] * len(shape), -1) if plane is None else plane.labels  # a class token has no place
            lines.append(labels.expand([s if a in varying else 1 for a, s in enumerate(shape)]))
        grids[number] = Plane(torch.cat(lines, axis), tuple(sorted(varying)))
    return tuple(grids)


@field_rule("roll", "flip", "rot90")
def moved(walk: FieldWalk, node: fx.Node) -> Values:
    """Channels are moved by the operator itself; moved positions end what can be said of them."""
    x = walk.input(node)
    dims = as_dims(argument(node, "dims"), x.ndim)
    if not x.whole and any(x.holds(grid, a) for grid in x.grids for a in dims):
        return walk.skip(node, "it moves positions around the border")
    return shape_operator(walk, node)


@field_rule(
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "rand_like", "randn_like", "sym_size", "_assert_tensor_metadata",
)  # fmt: skip
def constant(walk: FieldWalk, node: fx.Node) -> Values:
    """Nothing of the operand's values is read."""
    return None


@field_rule("index_select")
def index_select(walk: FieldWalk, node: fx.Node) -> Values:
    """Take channels by constant numbers; other numbers cannot be known."""
    x = walk.input(node)
    axis = int(argument(node, "dim", 0)) % x.ndim
    shape = shape_of(node)
    if not x.varies(axis) and not any(x.holds(grid, axis) for grid in x.grids):
        return replace(x, shape=shape)
    layer = walk.architecture.model.get_submodule(walk.path(node.name)) if module_class(node) else None
    if isinstance(layer, RollingPointwiseConv2d) and x.which is not None:
        windows = layer.channels_of(torch.arange(layer.windows)).flatten()[: shape[axis]]
        labels = x.which.labels.index_select(axis, windows)
        return with_labels(replace(x, shape=shape, which=None), labels)
    return walk.skip(node, "it picks by numbers that the graph does not hold")
