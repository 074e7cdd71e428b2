"""How each operator changes receptive fields: one rule per kind of operator, registered by the operators' names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import argument, as_dims, module_class, operator_name, shape_of, sizes_of
from convwright.architecture.labels import Plane, reshape_blocks
from convwright.architecture.layers import per_axis
from convwright.architecture.rules import RULES, elementwise, executed
from convwright.layers.rolling_pointwise import RollingPointwiseConv2d
from convwright.metrics.receptive_field.field import Extent, Field, FieldValue, Grid, with_labels, without_axes
from convwright.metrics.receptive_field.interpreter import (
    APART,
    FIELD_RULES,
    POINTWISE,
    ChannelMixing,
    FieldWalk,
    Values,
    Window,
    agree,
    field_rule,
    resolve,
    settled,
)

_REARRANGED = "the positions of a map do not lie along the axes that it slides over"

# ------------------------------------------------------------------ convolutions and pools


@field_rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(walk: FieldWalk, node: fx.Node) -> Values:
    """Kernels enlarge the extents; output channels read the channels of their group."""
    if argument(node, "transposed", False):
        return transposed_convolution(walk, node)
    x = walk.value_of(argument(node, "input"))
    weight = shape_of(argument(node, "weight"))
    rank = len(weight) - 2
    if x is None:
        return walk.skip(node, "its weight is computed from the input")
    if walk.value_of(argument(node, "weight")) is not None:
        walk.returning.setdefault(node.name)
    channel_axis = x.ndim - rank - 1
    axes = range(x.ndim - rank, x.ndim)
    kernels = kernels_of(node, weight[2:])
    placed = (x, ()) if x.whole else walk.on_axes(x, axes)
    if placed is None:
        return walk.skip(node, _REARRANGED)
    x = placed[0]  # before channels mix: after space to depth each has a place of its own
    mixing = ChannelMixing(weight[0], int(argument(node, "groups", 1)), rolling_windows(walk, node))
    mixed = walk.mix(x, channel_axis, mixing)
    mixed = walk.merged(mixed, [a for a, k in zip(axes, kernels, strict=True) if k.size > 1])
    found = walk.slide(node, mixed, axes, kernels, shape_of(node))
    walk.entered[node.name] = x
    return found if found is not None else walk.skip(node, _REARRANGED)


def kernels_of(node: fx.Node, sizes: Sequence[int]) -> tuple[Window, ...]:
    """Return the kernel of a convolution or a pool along each spatial axis."""
    rank = len(sizes)
    strides = per_axis(argument(node, "stride") or tuple(sizes), rank)  # a pool without strides moves by its size
    dilations = per_axis(argument(node, "dilation") or 1, rank)
    asked = argument(node, "padding") or 0
    if isinstance(asked, str):  # "same" puts the odd one behind
        reach = [d * (k - 1) for d, k in zip(dilations, sizes, strict=True)]
        paddings = tuple(r // 2 if asked == "same" else 0 for r in reach)
    else:
        paddings = per_axis(asked, rank)
    return tuple(itertools.starmap(Window, zip(sizes, strides, dilations, paddings, strict=True)))


def rolling_windows(walk: FieldWalk, node: fx.Node) -> Tensor | None:
    """Return which channels a rolling pointwise convolution reads where it runs as a dense one with zeros."""
    if module_class(node) != "RollingPointwiseConv2d" or int(argument(node, "groups", 1)) > 1:
        return None
    layer = walk.architecture.model.get_submodule(walk.path(node.name))
    if not isinstance(layer, RollingPointwiseConv2d) or layer.windows == 1:
        return None
    return layer.channels().cpu()


@field_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(walk: FieldWalk, node: fx.Node) -> Values:
    """Each output reads ``ceil(kernel / stride)`` neighbours; the steps become smaller."""
    x = walk.input(node)
    weight = shape_of(argument(node, "weight"))
    rank = len(weight) - 2
    axes = range(x.ndim - rank, x.ndim)
    groups = int(argument(node, "groups", 1))
    placed = (x, ()) if x.whole else walk.on_axes(x, axes)
    if placed is None:
        return walk.skip(node, _REARRANGED)
    mixed = walk.mix(placed[0], x.ndim - rank - 1, ChannelMixing(weight[1] * groups, groups))
    kernels = kernels_of(node, weight[2:])
    reaches = [k.dilation * (k.size - 1) for k in kernels]
    if all(k.stride == 1 for k in kernels):  # a convolution with the kernel turned around
        turned = [replace(k, padding=reach - k.padding) for k, reach in zip(kernels, reaches, strict=True)]
        return _windowed(walk, node, mixed, axes, turned)
    taps = [reach // k.stride + 1 for k, reach in zip(kernels, reaches, strict=True)]
    return _resample(walk, node, mixed, axes, taps)


@field_rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "lp_pool1d", "lp_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
def pool(walk: FieldWalk, node: fx.Node) -> Values:
    """Like a depthwise convolution; one window over the whole map is global pooling."""
    x = walk.input(node)
    rank = int(next(c for c in operator_name(node) if c.isdigit()))
    sizes = per_axis(argument(node, "kernel_size") or 1, rank)
    axes = range(x.ndim - rank, x.ndim)
    whole = all(k >= x.shape[a] > 1 for k, a in zip(sizes, axes, strict=True))
    if whole and all(shape_of(node)[a] == 1 for a in axes):
        return _pooled(walk, node, x, axes)
    return _windowed(walk, node, x, axes, kernels_of(node, sizes))


@field_rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
)  # fmt: skip
def adaptive_pool(walk: FieldWalk, node: fx.Node) -> Values:
    """To one position: global. To as many as there are: nothing. Else bins, as large as they can be."""
    x = walk.input(node)
    rank = int(next(c for c in operator_name(node) if c.isdigit()))
    axes = range(x.ndim - rank, x.ndim)
    sizes = per_axis(argument(node, "output_size") or 1, rank)
    sizes = tuple(x.shape[a] if s is None else s for s, a in zip(sizes, axes, strict=True))
    if all(s == 1 for s in sizes):
        return _pooled(walk, node, x, axes)
    ratios = [(x.shape[a], s) for s, a in zip(sizes, axes, strict=True)]
    if all(before % after == 0 for before, after in ratios):
        kernels = tuple(Window(before // after, before // after) for before, after in ratios)
        return _windowed(walk, node, x, axes, kernels)
    taps = [before // after + (2 if before % after else 0) for before, after in ratios]
    return _resample(walk, node, x, axes, taps)


def _windowed(walk: FieldWalk, node: fx.Node, x: FieldValue, axes: Sequence[int], kernels: Sequence[Window]) -> Values:
    x = walk.merged(x, [a for a, k in zip(axes, kernels, strict=True) if k.size > 1])

    def make(shape: tuple[int, ...], _: int) -> FieldValue:
        found = walk.slide(node, x, axes, kernels, shape)
        if found is None:
            walk.skipped[node.name] = f"{walk.path(node.name)}: {_REARRANGED}"
        return found or walk.everything(shape)

    return walk.results(node, make)


def _pooled(walk: FieldWalk, node: fx.Node, x: FieldValue, axes: Sequence[int]) -> Values:
    """Return a value each element of which sees whole axes; channels stay apart."""
    walk.note_overall(node, "global pooling")
    numbers = [k for k, grid in enumerate(x.grids) if any(x.holds(grid, a) for a in axes)]
    x = walk.merged(replace(x, shape=tuple(1 if a in axes else s for a, s in enumerate(x.shape))), axes, x)
    x = x.changed(lambda extents: over_all(walk, extents, numbers))
    return walk.results(node, lambda shape, _: _reshaped(walk, x, shape))


def over_all(walk: FieldWalk, extents: tuple[Extent, ...], numbers: Sequence[int]) -> tuple[Extent, ...]:
    """Return extents that reach over all of some spatial axes of the scope."""
    return tuple(e.everything(walk.lengths[k]) if k in numbers else e for k, e in enumerate(extents))


def _reshaped(walk: FieldWalk, x: FieldValue, shape: tuple[int, ...]) -> FieldValue:
    """Return a value under the shape that torch recorded, which differs in axes of size 1 alone."""
    if x.which is None or len(shape) == x.ndim:
        return replace(x, shape=shape, grids=walk.usual_grids(shape))
    labels = x.labels().reshape(shape)
    return with_labels(replace(x, shape=shape, which=None, grids=walk.usual_grids(shape)), labels)


# ------------------------------------------------------------------ resampling and padding


@field_rule(
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "_upsample_bilinear2d_aa", "upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
)  # fmt: skip
def upsampled(walk: FieldWalk, node: fx.Node) -> Values:
    """Along each axis an output reads one input, or its two (linear) or four (cubic) neighbours."""
    name, x, shape = operator_name(node), walk.input(node), shape_of(node)
    taps = 1 if "nearest" in name else 4 if "cubic" in name else 2
    axes = range(2, x.ndim)
    return _resample(walk, node, x, axes, [taps * max(1, -(-x.shape[a] // shape[a])) for a in axes])


def _resample(walk: FieldWalk, node: fx.Node, x: FieldValue, axes: Sequence[int], taps: Sequence[int]) -> Values:
    shape = shape_of(node)
    if x.whole:
        return replace(x, shape=shape, grids=walk.usual_grids(shape))
    placed = walk.on_axes(walk.merged(x, axes), axes)
    if placed is None:
        return walk.skip(node, _REARRANGED)
    x, order = placed
    walk.entered[node.name] = x
    about = {k: (x.shape[a], shape[a], t) for k, a, t in zip(order, axes, taps, strict=True)}

    def resampled(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
        return tuple(e.resampled(*about[k]) if k in about else e for k, e in enumerate(extents))

    return replace(x.changed(resampled), shape=shape)


@field_rule(
    "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def pad(walk: FieldWalk, node: fx.Node) -> Values:
    """Positions in front move the fields; channels that are padded see nothing."""
    x = walk.input(node)
    amounts = [int(a) for a in argument(node, "pad" if operator_name(node).endswith(("pad", "nd")) else "padding")]
    shape = shape_of(node)
    fronts = {x.ndim - 1 - i: front for i, front in enumerate(amounts[::2]) if front or amounts[2 * i + 1]}
    spatial = [a for a in fronts if any(x.holds(grid, a) for grid in x.grids)]
    others = [a for a in fronts if a not in spatial]
    for axis in others:
        x = _padded(x, axis, fronts[axis], shape[axis])
    if not spatial or x.whole:
        return replace(x, shape=shape)
    kernels = [Window(1, padding=fronts[axis]) for axis in spatial]
    entered = dict(walk.entered)
    found = walk.slide(node, x, spatial, kernels, shape)
    walk.entered = entered
    return found if found is not None else walk.skip(node, _REARRANGED)


def _padded(x: FieldValue, axis: int, front: int, size: int) -> FieldValue:
    """Return a value with elements in front and behind that see no channel (negative: some cut off)."""
    behind = size - x.shape[axis] - front
    if front < 0 or behind < 0:
        kept = x.shape[axis] + min(front, 0) + min(behind, 0)
        shape = tuple(kept if a == axis else s for a, s in enumerate(x.shape))
        labels = x.labels().narrow(axis, max(-front, 0), kept)
        return _padded(with_labels(replace(x, shape=shape, which=None), labels), axis, max(front, 0), size)
    empty = Field(x.fields[0].extents, 0)
    labels = x.labels().narrow(0, 0, 1)
    wide = list(labels.shape)
    wide[axis] = size
    padded = torch.full(wide, len(x.fields), dtype=torch.int64)
    padded.narrow(axis, front, x.shape[axis]).copy_(labels)
    shape = tuple(size if a == axis else s for a, s in enumerate(x.shape))
    return with_labels(replace(x, shape=shape, fields=(*x.fields, empty), which=None), padded)


# ------------------------------------------------------------------ weights without a window


@field_rule("linear")
def linear(walk: FieldWalk, node: fx.Node) -> Values:
    """All outputs read the whole last axis; positions that lie along it are all seen."""
    x = walk.input(node)
    walk.entered[node.name] = x
    return _contracted(walk, node, x, x.ndim - 1)


def _contracted(walk: FieldWalk, node: fx.Node, x: FieldValue, axis: int) -> Values:
    shape = shape_of(node)
    for number, grid in enumerate(x.grids):
        if isinstance(grid, Plane) and axis in grid.axes and len(grid.axes) > 1 and not x.whole:
            found = (resolve(x, number, other) for other in grid.axes if other != axis)
            x_or_none = next((f for f in found if f is not None), None)
            if x_or_none is None:
                return walk.skip(node, _REARRANGED)
            x = x_or_none
    numbers = [k for k, grid in enumerate(x.grids) if isinstance(grid, Plane | int) and x.holds(grid, axis)]
    merged = walk.merged(replace(x, shape=shape), [axis], x)
    if not numbers:
        return merged
    walk.note_overall(node, "all positions flattened into one layer")
    value = replace(merged, grids=tuple(None if k in numbers else grid for k, grid in enumerate(merged.grids)))
    return value.changed(lambda extents: over_all(walk, extents, numbers))


@field_rule("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "mv", "dot")
def matmul(walk: FieldWalk, node: fx.Node) -> Values:
    """A product with weights is a linear layer; a product of two activations is attention, and sees all."""
    if operator_name(node) in ("matmul", "mm", "bmm"):
        a, b = walk.value_of(node.args[0]), walk.value_of(node.args[1])
        if a is not None and b is None:
            walk.entered[node.name] = a
            return _contracted(walk, node, a, a.ndim - 1)
        if b is not None and a is None and b.ndim == len(shape_of(node)):
            return _contracted(walk, node, b, b.ndim - 2)
    return walk.see_all(node, "attention or another product of two activations")


# ------------------------------------------------------------------ elementwise, norms, reductions


@field_rule(POINTWISE, "maximum", "minimum", "where", "masked_fill", "copy", "copy_", "relu", "clamp", "prelu")
def join(walk: FieldWalk, node: fx.Node) -> Values:
    """Operands are joined, broadcast from the right; the rule of every operator that torch tags as pointwise."""
    values = walk.inputs(node)
    return walk.results(node, lambda shape, _: walk.join(node, values, shape))


@field_rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(walk: FieldWalk, node: fx.Node) -> Values:
    """In eval mode a scale and a shift per channel."""
    x = walk.input(node)
    return walk.results(node, lambda shape, i: x if i == 0 else walk.everything(shape))


@field_rule("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm")
def statistic(walk: FieldWalk, node: fx.Node) -> Values:
    """Fields pass: that the statistic sees more is noted, not counted."""
    walk.statistics.setdefault(node.name)
    return walk.input(node)


@field_rule("softmax", "log_softmax", "_softmax", "_log_softmax", "normalize")
def softmax(walk: FieldWalk, node: fx.Node) -> Values:
    """Elements along the axis see each other."""
    x = walk.input(node)
    axes = as_dims(argument(node, "dim"), x.ndim)
    if x.whole or not any(x.holds(grid, axis) for grid in x.grids for axis in axes):
        return walk.merged(x, axes)
    return walk.see_all(node, "softmax over positions")


@field_rule("cumsum", "cumprod")
def running(walk: FieldWalk, node: fx.Node) -> Values:
    """Elements along the axis see those before them."""
    x = walk.input(node)
    (axis,) = as_dims(argument(node, "dim"), x.ndim)
    if any(x.holds(grid, axis) for grid in x.grids) and not x.whole:
        return walk.see_all(node, "running sum over positions")
    size = x.shape[axis]
    before = torch.arange(size).expand(size, -1)
    return walk.mix(x, axis, ChannelMixing(size, windows=torch.minimum(before, before.T)))


@field_rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm", "logsumexp", "prod",
    "argmax", "argmin", "any", "all", "var_mean", "std_mean", "median",
)  # fmt: skip
def reduction(walk: FieldWalk, node: fx.Node) -> Values:
    """Over positions: global. Over channels: their union."""
    if len(walk.inputs(node)) > 1:
        return join(walk, node)
    x = walk.input(node)
    dims = as_dims(argument(node, "dim"), x.ndim)
    numbers = [k for k, grid in enumerate(x.grids) if any(x.holds(grid, a) for a in dims)]
    if numbers:
        walk.note_overall(node, "global pooling" if len(numbers) == len(x.grids) else "pooling over one axis")
        x = x.changed(lambda extents: over_all(walk, extents, numbers))
    keep = bool(argument(node, "keepdim", False))
    reduced = walk.merged(replace(x, shape=tuple(1 if a in dims else s for a, s in enumerate(x.shape))), dims, x)
    return walk.results(node, lambda shape, _: without_axes(reduced, dims, shape, keep))


# ------------------------------------------------------------------ shape operators: executed on the labels


@field_rule("slice", "narrow", "select")
def shape_operator(walk: FieldWalk, node: fx.Node) -> Values:
    """Run the operator itself on the labels: they land, or are cut, where the values are."""
    x = walk.input(node)
    rest, options = list(node.args[1:]), dict(node.kwargs)
    if x.whole and x.which is None:
        return walk.results(node, lambda shape, _: replace(x, shape=shape, grids=walk.usual_grids(shape)))
    return walk.execute(x, node, lambda p: node.target(p.labels.expand(x.shape), *rest, **options))  # type: ignore[operator]


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
        grids: list[Grid] = list(x.grids)
        for number in range(len(grids)):
            plane = x.plane(number)
            if plane is not None and axis in plane.axes:
                grids[number] = Plane(plane.labels.narrow(axis, start, shape[axis]), plane.axes)
        value = settled(replace(value, grids=tuple(grids)))
    return value


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


# Operators that have no rule of their own here behave as their family in the channel analysis.
_FAMILIES = {elementwise: join, executed: shape_operator}
FIELD_RULES.update({n: _FAMILIES[r] for n, r in RULES.items() if n not in FIELD_RULES and r in _FAMILIES})
