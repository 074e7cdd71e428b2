"""Shape operators are executed on the labels; reductions, pooling, resampling and padding leave channels alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import argument, as_dims, describe, operator_name, shape_of
from convwright.architecture.labels import (
    NEUTRAL,
    Plane,
    ResizeError,
    Value,
    Values,
    compact,
    line_plane,
    merge,
    narrowed,
    reduce_axes,
)
from convwright.architecture.rules.elementwise import elementwise
from convwright.architecture.rules.registry import across, opaque, rule

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


@rule(
    "permute", "transpose", "t", "mT", "numpy_T", "flatten", "unsqueeze", "movedim", "moveaxis",
    "swapaxes", "swapdims", "squeeze", "repeat", "tile", "repeat_interleave", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "flip", "roll", "rot90", "tril", "triu", "unfold",
)  # fmt: skip
def executed(follower: Follower, node: fx.Node) -> Values:
    """Run the operator itself on the label tensors: labels land where the values land."""
    x = follower.input(node, 0)
    return follower.execute(node, x, list(node.args[1:]), dict(node.kwargs))


@rule("view", "reshape", "_unsafe_view", "unflatten", "_reshape_alias", "reshape_as", "view_as")
def reshape(follower: Follower, node: fx.Node) -> Values:
    """Reshape the labels, or to another value's current shape; equal parts of a split axis must stay equal."""
    x = follower.input(node, 0)
    if operator_name(node) in ("reshape_as", "view_as"):
        target = follower.input(node, 1).shape
    else:
        target = follower.reshaped(node, x, follower.meta_shape(node, 0), shape_of(node))
    if math.prod(x.shape) != math.prod(target):
        raise ResizeError(
            f"{'x'.join(map(str, x.shape))} does not reshape to {'x'.join(map(str, target))} at {describe(node)}"
        )
    planes = follower.rearranged(node, x, lambda labels: labels.reshape(target))
    for plane in planes:
        if len(plane.axes) > 1:  # parts of a split axis: rows of equal length
            follower.ledger.equal_parts.append(plane.labels.reshape(-1, plane.labels.size(plane.axes[-1])))
    return follower.value(node, tuple(planes), x.weight)


@rule("view_as_complex")
def view_as_complex(follower: Follower, node: fx.Node) -> Values:
    """Both entries of the last axis become one number."""
    x = follower.input(node, 0)
    return follower.value(node, reduce_axes(follower.ledger, x, (x.ndim - 1,), keepdim=False), x.weight)


@rule("view_as_real")
def view_as_real(follower: Follower, node: fx.Node) -> Values:
    """Two entries along a new last axis: labels pass."""
    x = follower.input(node, 0)
    return follower.value(node, [Plane(p.labels[..., None], p.axes) for p in x.planes], x.weight)


@rule("expand", "expand_as", "broadcast_to")
def expand(follower: Follower, node: fx.Node) -> Values:
    """Broadcast: new axes carry no labels, old ones keep theirs."""
    x = follower.input(node, 0)
    ndim = len(shape_of(node))
    planes = merge(follower.ledger, [x], ndim)
    return follower.value(node, planes, x.weight)


@rule("cat", "concat", "concatenate")
def concat(follower: Follower, node: fx.Node) -> Values:
    """Labels follow each other along the concatenated axis; along other axes they are tied."""
    values = [follower.resolve(n) for n in node.args[0]]  # type: ignore[union-attr]
    ndim = len(shape_of(node))
    axis = int(argument(node, "dim", 0)) % ndim
    values = [v for v in values if v.ndim == ndim]  # torch ignores empty 1-d operands
    joined = [v.plane_at(axis) for v in values]
    others = [Value(v.shape, tuple(p for p in v.planes if axis not in p.axes)) for v in values]
    planes = list(merge(follower.ledger, others, ndim))
    if any(p is not None for p in joined):
        parts, axes = _expanded(values, joined, ndim)
        planes.insert(0, Plane(torch.cat(parts, axis), tuple(axes)))
    return follower.value(node, tuple(planes), all(v.weight for v in values))


def _expanded(values: list[Value], planes: list[Plane | None], ndim: int) -> tuple[list[Tensor], list[int]]:
    """Return labels of one shape from a plane of each value, and the axes along which any of them varies."""
    axes = sorted({a for p in planes if p is not None for a in p.axes})
    parts = []
    for value, plane in zip(values, planes, strict=True):
        shape = [value.shape[a] if a in axes else 1 for a in range(ndim)]
        neutral = torch.full(shape, NEUTRAL, dtype=torch.int32, device="cpu")
        parts.append(neutral if plane is None else plane.labels.expand(shape))
    return parts, axes


@rule("stack")
def stack(follower: Follower, node: fx.Node) -> Values:
    """Labels of the operands lie side by side along a new axis."""
    values = [follower.resolve(n) for n in node.args[0]]  # type: ignore[union-attr]
    ndim = len(shape_of(node))
    axis = int(argument(node, "dim", 0)) % ndim
    slots = max((len(v.planes) for v in values), default=0)
    planes = []
    for slot in range(slots):
        row = [v.planes[slot] if slot < len(v.planes) else None for v in values]
        parts, axes = _expanded(values, row, ndim - 1)
        lifted = tuple(a + (a >= axis) for a in axes)
        planes.append(Plane(torch.stack(parts, axis), tuple(sorted({axis, *lifted}))))
    return follower.value(node, tuple(planes), all(v.weight for v in values))


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(follower: Follower, node: fx.Node) -> Values:
    """Cut labels where values are cut; equal parts must stay equal."""
    x = follower.input(node, 0)
    axis = int(argument(node, "dim", 0)) % x.ndim
    outputs = node.meta["val"]
    old = [int(o.shape[axis]) for o in outputs]
    equal = len(set(old)) == 1  # sizes too: most often one number that is written twice
    sizes = follower.part_sizes(node, x, axis, old, equal)
    plane = x.plane_at(axis)
    if equal and plane is not None and len(old) > 1:
        first = narrowed(plane.labels, (other for other in plane.axes if other != axis))
        follower.ledger.equal_parts.append(first.reshape(len(old), -1))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        follower.value(node, _cut(x, axis, start, size), x.weight, output=i)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


@rule("glu")
def glu(follower: Follower, node: fx.Node) -> Values:
    """One half of the channels times the sigmoid of the other."""
    x = follower.input(node, 0)
    axis = int(argument(node, "dim", -1)) % x.ndim
    half = x.shape[axis] // 2
    if x.shape[axis] % 2:
        raise ResizeError(f"{x.shape[axis]} does not split into 2 parts at {describe(node)}")
    if (plane := x.plane_at(axis)) is not None:
        row = narrowed(plane.labels, (other for other in plane.axes if other != axis))
        follower.ledger.equal_parts.append(row.reshape(2, -1))
    halves = [Value(shape_of(node), _cut(x, axis, start, half)) for start in (0, half)]
    return follower.value(node, merge(follower.ledger, halves, x.ndim), x.weight)


def _cut(x: Value, axis: int, start: int, size: int) -> tuple[Plane, ...]:
    return tuple(Plane(p.labels.narrow(axis, start, size), p.axes) if axis in p.axes else p for p in x.planes)


@rule("slice", "narrow")
def slice_(follower: Follower, node: fx.Node) -> Values:
    """Cut one part out; along channels its ends move with the channels before them."""
    x = follower.input(node, 0)
    axis = int(argument(node, "dim", 0)) % x.ndim
    plane = x.plane_at(axis)
    if plane is None:
        return follower.value(node, x.planes, x.weight)
    if operator_name(node) == "narrow":
        start, step = int(argument(node, "start")), 1
        stop = start + int(argument(node, "length"))
    else:
        start, stop = argument(node, "start"), argument(node, "end")
        step = int(argument(node, "step", 1))
    length = follower.meta_shape(node, 0)[axis]
    start, stop, _ = slice(start, stop).indices(length)
    if stop - start == 1 < length:  # as `select` does
        follower.ledger.freeze(plane.labels, f"one channel is taken at {describe(node)}")
    if step == 1:
        sizes = follower.part_sizes(node, x, axis, [start, stop - start, length - stop], False)
        return follower.value(node, _cut(x, axis, sizes[0], sizes[1]), x.weight)
    if length % step or start >= step or stop != length:
        reason = f"of {length} channels, one in {step} is taken from number {start} on at {describe(node)}"
        follower.ledger.freeze(plane.labels, reason)
    else:  # a channel is one place in all of the rows that are dealt out
        row = narrowed(plane.labels, (other for other in plane.axes if other != axis), follower.ledger).reshape(-1)
        follower.ledger.tie_rows(row.reshape(-1, step).T)
    dealt = (slice(None),) * axis + (slice(start, stop if stop != length else None, step),)
    planes = tuple(Plane(p.labels[dealt], p.axes) if axis in p.axes else p for p in x.planes)
    return follower.value(node, planes, x.weight)


@rule("index", "index_select")
def index(follower: Follower, node: fx.Node) -> Values:
    """Take positions by numbers, along axes that carry no channels; along others the numbers in the code fix them."""
    x, single = follower.input(node, 0), operator_name(node) == "index_select"
    places = [None] * (int(argument(node, "dim")) % x.ndim if single else 0)
    places += [argument(node, "index")] if single else argument(node, "indices")
    kept = []
    for plane in x.planes:
        if any(axis < len(places) and places[axis] is not None for axis in plane.axes):
            follower.ledger.freeze(plane.labels, f"channels are taken by their numbers at {describe(node)}")
        else:
            kept.append(plane)
    for numbers in (each for each in places if each is not None):
        follower.ledger.freeze_value(follower.resolve(numbers), f"they are numbers of positions at {describe(node)}")
    firsts = tuple(
        slice(None) if each is None else torch.zeros(shape_of(each), dtype=torch.int64, device="cpu") for each in places
    )
    return follower.value(node, follower.rearranged(node, Value(x.shape, tuple(kept)), lambda labels: labels[firsts]))


@rule("select", "unbind")
def select(follower: Follower, node: fx.Node) -> Values:
    """Take single positions along one axis (fixed if channels lie along it), or rows of equally many channels."""
    x = follower.input(node, 0)
    axis = int(argument(node, "dim", 0)) % x.ndim
    if (plane := x.plane_at(axis)) is not None and len(plane.axes) > 1:
        follower.ledger.equal_parts.append(plane.labels.movedim(axis, 0).flatten(1))
    elif plane is not None:
        follower.ledger.picked.append((plane, axis, f"single channels are picked at {describe(node)}"))
    outputs = node.meta["val"]
    if isinstance(outputs, tuple | list):
        return [follower.value(node, _picked(x, axis, i), x.weight, output=i) for i in range(len(outputs))]
    return follower.value(node, _picked(x, axis, int(argument(node, "index"))), x.weight)


def _picked(x: Value, axis: int, index: int) -> tuple[Plane, ...]:
    planes = []
    for plane in x.planes:
        where = index if axis in plane.axes else 0
        axes = tuple(a - (a > axis) for a in plane.axes if a != axis)
        if axes:
            planes.append(Plane(plane.labels.select(axis, where), axes))
    return tuple(planes)


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm",
    "logsumexp", "prod", "argmax", "argmin", "any", "all", "var_mean", "std_mean", "median",
)  # fmt: skip
def reduction(follower: Follower, node: fx.Node) -> Values:
    """Labels of the axes that remain pass; what is reduced beside them is tied."""
    inputs = follower.tensor_inputs(node)
    if len(inputs) > 1:  # max(x, y) is elementwise
        return elementwise(follower, node)
    x = inputs[0]
    dims = as_dims(argument(node, "dim"), x.ndim)
    across(follower, x, dims, node)
    planes = reduce_axes(follower.ledger, x, dims, bool(argument(node, "keepdim", False)))
    outputs = node.meta.get("val")
    if isinstance(outputs, tuple | list):
        return [follower.value(node, planes, x.weight, output=i) for i in range(len(outputs))]
    return follower.value(node, planes, x.weight)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d_with_indices", "lp_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_adaptive_avg_pool2d", "grid_sampler", "grid_sampler_2d", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "upsample_bilinear2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d", "roi_align", "roi_pool",
)  # fmt: skip
def spatial(follower: Follower, node: fx.Node) -> Values:
    """Axes whose size stays pass; labels along resampled axes are tied into one; the other operand says where."""
    x = follower.input(node, 0)
    for places in follower.tensor_inputs(node)[1:]:
        follower.ledger.freeze_value(places, f"they are the positions that {describe(node)} reads")
    before = follower.meta_shape(node, 0)
    outputs = node.meta.get("val")
    first = outputs[0] if isinstance(outputs, tuple | list) else outputs
    assert isinstance(first, Tensor)
    changed = {a for a in range(x.ndim) if before[a] != first.shape[a]} | set(range(2, x.ndim))
    plane = x.plane_at(2)
    if plane is not None and plane.axes == (2,) and int(plane.line()[0]) == NEUTRAL:  # means of neighbouring channels
        across(follower, x, (2,), node)
        size = int(argument(node, "kernel_size")[0])
        return follower.value(node, [Plane(plane.labels.narrow(2, size // 2, x.shape[2] - size + 1), (2,))])
    planes = _resampled(follower, x, changed)
    if isinstance(outputs, tuple | list):
        return [follower.value(node, planes, output=i) for i in range(len(outputs))]
    return follower.value(node, planes)


@rule("max_unpool2d", "max_unpool3d")
def unpool(follower: Follower, node: fx.Node) -> Values:
    """Values return to the places that a pool noted, channel by channel."""
    x, places = follower.input(node, 0), follower.input(node, 1)
    planes = merge(follower.ledger, [x, places], x.ndim)
    return follower.value(node, _resampled(follower, Value(x.shape, planes), set(range(2, x.ndim))))


@rule("im2col")
def unfold(follower: Follower, node: fx.Node) -> Values:
    """Each channel gives one row per place of the window; windows follow each other along the last axis."""
    x = follower.input(node, 0)
    labels = follower.channels(x, 1, node)
    rows = math.prod(argument(node, "kernel_size"))
    planes = [] if labels is None else [line_plane(labels.repeat_interleave(rows), 1, 3)]
    return follower.value(node, planes)


@rule("col2im")
def fold(follower: Follower, node: fx.Node) -> Values:
    """The reverse: the rows of a channel, one per place of the window, become one map."""
    x = follower.input(node, 0)
    labels, rows = follower.channels(x, 1, node), math.prod(argument(node, "kernel_size"))
    if labels is None or x.ndim != 3:
        return opaque(follower, node)
    table = labels.reshape(-1, rows).T
    follower.ledger.tie_rows(table)
    return follower.value(node, [line_plane(table[0], 1, 4)])


@rule(*(f"fft_{way}{dims}" for way in ("fft", "ifft", "rfft", "irfft") for dims in ("", "2", "n")), "fft_fftshift")
def fourier(follower: Follower, node: fx.Node) -> Values:
    """Mixes positions along some axes; labels along others pass."""
    x = follower.input(node, 0)
    dims = as_dims(argument(node, "dim"), x.ndim)
    mixed = [plane for plane in x.planes if set(plane.axes) & set(dims)]
    for plane in mixed:
        follower.ledger.freeze(plane.labels, f"they are mixed by {describe(node)}")
    return follower.value(node, [plane for plane in x.planes if plane not in mixed], x.weight)


def _resampled(follower: Follower, x: Value, changed: set[int]) -> tuple[Plane, ...]:
    planes = []
    for plane in x.planes:
        kept = tuple(a for a in plane.axes if a not in changed)
        labels = narrowed(plane.labels, (a for a in plane.axes if a in changed), follower.ledger)
        if kept:
            planes.append(Plane(labels, kept))
    return tuple(planes)


@rule("pad", "constant_pad_nd")
def pad(follower: Follower, node: fx.Node) -> Values:
    """Spatial padding passes; padding the channel axis by a constant fixes its size."""
    x = follower.input(node, 0)
    amounts = list(argument(node, "pad"))
    padded = {x.ndim - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    planes = []
    for plane in x.planes:
        if not set(plane.axes) & padded:
            planes.append(plane)
            continue
        if padded == set(plane.axes) == {2} and all(operator_name(u).startswith("avg_pool") for u in node.users):
            labels = torch.nn.functional.pad(plane.labels, amounts, value=NEUTRAL)  # a local response norm
            planes.append(Plane(labels, plane.axes))
            continue
        reason = f"channels are padded by a constant at {describe(node)}"
        follower.ledger.freeze(plane.labels, reason)
        atom = follower.ledger.fresh(1)
        follower.ledger.freeze(atom, reason)
        widened = torch.nn.functional.pad(plane.labels.expand(x.shape), amounts, value=int(atom))
        planes.append(compact(widened, sorted(set(plane.axes) | (padded & set(plane.axes)))))
    return follower.value(node, tuple(planes), x.weight)
