"""Rules: how each kind of operator moves and ties channel labels.

There are few. Shape operators are simply *executed* on the labels, so concat, split, shuffle and flatten
need no rule of their own. Elementwise operators are recognised by torch's own ``pointwise`` tag. What remains
are the operators that consume or produce channels (convolution, linear), statistics (norms, reductions) and
spatial operators, which leave channels alone. An operator without a rule freezes what enters it and is named in
the reason; nothing is guessed.

A rule is a function ``(follower, node) -> Value`` registered under bare operator names. Adding one is one
function with ``@rule("name")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from convwright.architecture.capture import argument, as_dims, describe, operator_name, shape_of
from convwright.architecture.labels import (
    NEUTRAL,
    Plane,
    ResizeError,
    Value,
    Values,
    along,
    compact,
    full,
    line_plane,
    merge,
    reduce_axes,
    with_sizes,
)

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower

Rule = Callable[["Follower", fx.Node], Values]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the given bare operator names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def rule_for(node: fx.Node) -> Rule:
    """Return the rule of a node: by name, else by torch's pointwise tag, else the freezing rule."""
    found = RULES.get(operator_name(node))
    if found is not None:
        return found
    tags = getattr(node.target, "tags", ())
    return elementwise if torch.Tag.pointwise in tags else opaque


# ------------------------------------------------------------------ elementwise


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "clone", "contiguous",
    "detach", "alias", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "type_as", "conj", "copy",
    "zeros_like", "ones_like", "full_like", "rand_like", "empty_like", "rsub", "addcmul", "lerp",
    "where", "fill", "zero", "softplus", "bernoulli", "_assert_tensor_metadata", "float", "half",
    "masked_fill", "__and__", "__or__", "silu", "hardswish", "gelu", "elu", "selu", "celu",
    "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "mish", "threshold", "rrelu", "log_sigmoid",
)  # fmt: skip
def elementwise(follower: Follower, node: fx.Node) -> Values:
    """Tie operands that vary along the same axes; labels pass."""
    values = follower.tensor_inputs(node)
    if not values:
        return Value(shape_of(node))
    ndim = len(shape_of(node))
    planes = merge(follower.ledger, values, ndim)
    return follower.value(node, planes, all(v.weight for v in values))


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "normalize", "cumsum")
def softmax(follower: Follower, node: fx.Node) -> Values:
    """Labels pass; if the normalised axis is a channel axis, a statistic runs across it."""
    x = follower.input(node, 0)
    dims = as_dims(argument(node, "dim"), x.ndim)
    _across(follower, x, dims, node)
    return follower.value(node, x.planes, x.weight)


@rule("prelu")
def prelu(follower: Follower, node: fx.Node) -> Values:
    """The slope has one entry, or one per channel (axis 1)."""
    x = follower.input(node, 0)
    follower.attach(node, "weight", along(follower.ledger, x, 1), x)
    return follower.value(node, x.planes)


# ------------------------------------------------------------------ convolution and linear


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(follower: Follower, node: fx.Node) -> Values:
    """Input labels meet the weight's input axis; the weight's output axis is emitted."""
    if argument(node, "transposed", False):
        return transposed_convolution(follower, node)
    x, weight = follower.input(node, "input"), follower.input(node, "weight")
    axis = x.ndim - weight.ndim + 1
    groups = int(argument(node, "groups", 1))
    labels = follower.channels(x, axis, node)
    if groups > 1 and groups == follower.old_size(node, "input", axis) and weight.shape[1] == 1:
        return _depthwise(follower, node, x, axis, labels)
    share = _per_group(follower, node, x.shape[axis], groups)
    inner = follower.weight_line(node, "weight", 1, share)
    outer = follower.weight_line(node, "weight", 0)
    _consume(follower, node, labels, inner, groups)
    if outer is not None:
        if groups > 1:
            _tie_rows(follower, outer, groups, node)
        follower.ledger.produce(outer, follower.owner(node))
    return _convolved(follower, node, x, axis, outer, groups)


def _depthwise(follower: Follower, node: fx.Node, x: Value, axis: int, labels: Tensor | None) -> Value:
    """One filter (or ``m``) per channel: output channels follow input channels."""
    channels = x.shape[axis]
    old = follower.old_size(node, "input", axis)
    times = follower.old_size(node, "weight", 0) // old
    outer = follower.weight_line(node, "weight", 0, channels * times)
    spread = None if labels is None else labels.repeat_interleave(times)
    if outer is not None and spread is not None:
        follower.ledger.tie(spread, outer)
        follower.ledger.carry(outer)
    elif outer is not None:
        follower.ledger.freeze(outer, f"its input carries no channels at {describe(node)}")
    emitted = outer if outer is not None else spread
    return _convolved(follower, node, x, axis, emitted, channels)


def _consume(follower: Follower, node: fx.Node, labels: Tensor | None, inner: Tensor | None, groups: int) -> None:
    ledger = follower.ledger
    if labels is not None and groups > 1:
        labels = labels.reshape(groups, -1)
        ledger.tie(labels, labels[:1])
        labels = labels[0]
    if inner is None:
        if labels is not None and labels.numel() == 1:
            return
        if labels is not None:
            ledger.freeze(labels, f"a computed weight hides its input axis at {describe(node)}")
        return
    ledger.consume(inner)
    if labels is None:
        ledger.freeze(inner, f"its input carries no channels at {describe(node)}")
    else:
        ledger.tie(labels, inner)
        unlabelled = inner[labels == NEUTRAL]
        if unlabelled.numel():
            ledger.freeze(unlabelled, f"part of its input carries no channels at {describe(node)}")


def _per_group(follower: Follower, node: fx.Node, channels: int, groups: int) -> int:
    if channels % groups:
        raise ResizeError(f"{channels} channels do not divide into {groups} groups at {describe(node)}")
    return channels // groups


def _tie_rows(follower: Follower, labels: Tensor, rows: int, node: fx.Node) -> None:
    _per_group(follower, node, labels.numel(), rows)
    table = labels.reshape(rows, -1)
    follower.ledger.tie(table, table[:1])


def _convolved(follower: Follower, node: fx.Node, x: Value, axis: int, emitted: Tensor | None, groups: int) -> Value:
    planes = [] if emitted is None else [line_plane(emitted, axis, x.ndim)]
    out = shape_of(node)
    for plane in x.planes:
        if axis in plane.axes:
            continue
        if all(plane.labels.size(a) == 1 or out[a] == follower.meta_shape(node, "input")[a] for a in plane.axes):
            follower.ledger.across.append((plane.labels, plane.axes, describe(node)))
            planes.append(plane)
        else:
            follower.ledger.freeze(plane.labels, f"it is a spatial axis of {describe(node)}")
    follower.groups[follower.key(node)] = groups
    bias = follower.optional_input(node, "bias")
    value = follower.value(node, tuple(planes))
    if bias is not None:
        follower.attach(node, "bias", emitted, value)
    return value


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(follower: Follower, node: fx.Node) -> Values:
    """Weight (in, out / groups, ...): the input axis is whole, the output axis one group's share."""
    x, weight = follower.input(node, "input"), follower.input(node, "weight")
    axis = x.ndim - weight.ndim + 1
    groups = int(argument(node, "groups", 1))
    labels = follower.channels(x, axis, node)
    depthwise = groups > 1 and groups == follower.old_size(node, "input", axis)
    inner = follower.weight_line(node, "weight", 0, x.shape[axis])
    outer = follower.weight_line(node, "weight", 1)
    ledger = follower.ledger
    if depthwise and weight.shape[1] == 1:
        if inner is not None and labels is not None:
            ledger.tie(labels, inner)
            ledger.carry(inner)
        return _convolved(follower, node, x, axis, labels, x.shape[axis])
    if inner is not None and groups > 1:
        _tie_rows(follower, inner, groups, node)
    _consume(follower, node, labels, inner, 1)
    if outer is not None:
        ledger.produce(outer, follower.owner(node))
    emitted = None if outer is None else outer.repeat(groups)
    return _convolved(follower, node, x, axis, emitted, groups)


@rule("linear")
def linear(follower: Follower, node: fx.Node) -> Values:
    """Like a 1x1 convolution on the last axis; other axes pass."""
    x = follower.input(node, "input")
    axis = x.ndim - 1
    labels = follower.channels(x, axis, node)
    inner = follower.weight_line(node, "weight", 1, x.shape[axis])
    outer = follower.weight_line(node, "weight", 0)
    _consume(follower, node, labels, inner, 1)
    planes = [p for p in x.planes if axis not in p.axes]
    if outer is not None:
        follower.ledger.produce(outer, follower.owner(node))
        planes.append(line_plane(outer, axis, x.ndim))
    value = follower.value(node, tuple(planes))
    if follower.optional_input(node, "bias") is not None:
        follower.attach(node, "bias", outer, value)
    return value


@rule("matmul", "mm", "bmm")
def matmul(follower: Follower, node: fx.Node) -> Values:
    """Rows and columns pass; the contracted axis is tied; a product of two activations is frozen."""
    a, b = follower.input(node, 0), follower.input(node, 1)
    if a.ndim < 2 or b.ndim < 2:
        return opaque(follower, node)
    if not (a.weight or b.weight):
        return opaque(follower, node)
    ndim = len(shape_of(node))
    ledger = follower.ledger
    left, right = along(ledger, a, a.ndim - 1), along(ledger, b, b.ndim - 2)
    weight_side = right if b.weight else left
    if left is not None and right is not None:
        ledger.tie(left, right)
    elif weight_side is not None:
        ledger.freeze(weight_side, f"its input carries no channels at {describe(node)}")
    if weight_side is not None:
        ledger.consume(weight_side)
    rows = [p for p in a.planes if a.ndim - 1 not in p.axes]
    columns = [p for p in b.planes if b.ndim - 2 not in p.axes]
    for plane in columns if b.weight else rows:
        ledger.produce(plane.labels, follower.owner(node))
    planes = merge(ledger, [Value(a.shape, tuple(rows)), Value(b.shape, tuple(columns))], ndim)
    return follower.value(node, planes)


# ------------------------------------------------------------------ normalisation


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(follower: Follower, node: fx.Node) -> Values:
    """Scale, shift and running statistics follow axis 1."""
    x = follower.input(node, 0)
    if x.planes or any(follower.optional_input(node, n) for n in ("weight", "running_mean")):
        labels = follower.channels(x, 1, node) if x.ndim > 1 else None
        for name in ("weight", "bias", "running_mean", "running_var"):
            if follower.optional_input(node, name) is not None:
                follower.attach(node, name, labels, x)
    if x.weight:  # standardised weights: the statistic runs over the input axis
        _across(follower, x, range(2, x.ndim), node)
    return follower.value(node, x.planes, x.weight)


@rule("layer_norm", "rms_norm")
def layer_norm(follower: Follower, node: fx.Node) -> Values:
    """A statistic over the last axes; scale and shift follow them."""
    x = follower.input(node, 0)
    normalized = len(argument(node, "normalized_shape"))
    dims = range(x.ndim - normalized, x.ndim)
    _across(follower, x, dims, node)
    affine = [follower.optional_input(node, name) for name in ("weight", "bias")]
    planes = merge(follower.ledger, [x, *(v for v in affine if v is not None)], x.ndim)
    for value in affine:
        for plane in value.planes if value is not None else ():
            follower.ledger.carry(plane.labels)
    return follower.value(node, planes)


@rule("group_norm")
def group_norm(follower: Follower, node: fx.Node) -> Values:
    """Groups must stay equal: the same place in each group is tied."""
    x = follower.input(node, 0)
    groups = int(argument(node, "num_groups"))
    labels = follower.channels(x, 1, node)
    if labels is not None:
        follower.ledger.across.append((labels, (0,), describe(node)))
        if groups > 1 and groups == follower.old_size(node, 0, 1):
            follower.ledger.freeze(labels, f"each channel is a group of its own at {describe(node)}")
        elif groups > 1:
            _tie_rows(follower, labels, groups, node)
    for name in ("weight", "bias"):
        if follower.optional_input(node, name) is not None:
            follower.attach(node, name, labels, x)
    return follower.value(node, x.planes)


@rule("local_response_norm")
def local_response_norm(follower: Follower, node: fx.Node) -> Values:
    """Labels pass; neighbours across channels enter the statistic."""
    x = follower.input(node, 0)
    _across(follower, x, (1,), node)
    return follower.value(node, x.planes)


@rule("_weight_norm")
def weight_norm(follower: Follower, node: fx.Node) -> Values:
    """A direction, normalised over all axes but one, times a gain along that one."""
    direction, gain = follower.input(node, 0), follower.input(node, 1)
    kept = int(argument(node, "dim", 0))
    _across(follower, direction, set(range(direction.ndim)) - {kept % direction.ndim}, node)
    planes = merge(follower.ledger, [direction, gain], direction.ndim)
    return follower.value(node, planes, weight=True)


# ------------------------------------------------------------------ reductions and spatial operators


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
    schema = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    dims = as_dims(argument(node, "dim"), x.ndim) if "dim" in schema else as_dims(None, x.ndim)
    _across(follower, x, dims, node)
    planes = reduce_axes(follower.ledger, x, dims, bool(argument(node, "keepdim", False)))
    outputs = node.meta.get("val")
    if isinstance(outputs, tuple | list):
        return [follower.value(node, planes, x.weight, output=i) for i in range(len(outputs))]
    return follower.value(node, planes, x.weight)


def _across(follower: Follower, x: Value, dims: Any, node: fx.Node) -> None:
    """Note that a statistic runs across labels, so copies or gaps change it."""
    for plane in x.planes:
        if along_dims := tuple(a for a in plane.axes if a in dims):
            follower.ledger.across.append((plane.labels, along_dims, describe(node)))


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d_with_indices", "lp_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_adaptive_avg_pool2d", "grid_sampler", "grid_sampler_2d", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "upsample_bilinear2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d",
)  # fmt: skip
def spatial(follower: Follower, node: fx.Node) -> Values:
    """Axes whose size stays pass; labels along resampled axes are tied into one."""
    x = follower.input(node, 0)
    before = follower.meta_shape(node, 0)
    outputs = node.meta.get("val")
    first = outputs[0] if isinstance(outputs, tuple | list) else outputs
    assert isinstance(first, Tensor)
    changed = {a for a in range(x.ndim) if before[a] != first.shape[a]} | set(range(2, x.ndim))
    planes = _resampled(follower, x, changed)
    if isinstance(outputs, tuple | list):
        return [follower.value(node, planes, output=i) for i in range(len(outputs))]
    return follower.value(node, planes)


def _resampled(follower: Follower, x: Value, changed: set[int]) -> tuple[Plane, ...]:
    planes = []
    for plane in x.planes:
        kept = tuple(a for a in plane.axes if a not in changed)
        labels = plane.labels
        for axis in plane.axes:
            if axis in changed:
                first = labels.narrow(axis, 0, 1)
                follower.ledger.tie(labels, first)
                labels = first
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
        reason = f"channels are padded by a constant at {describe(node)}"
        follower.ledger.freeze(plane.labels, reason)
        atom = follower.ledger.fresh(1)
        follower.ledger.freeze(atom, reason)
        widened = torch.nn.functional.pad(full(plane, x.shape), amounts, value=int(atom))
        planes.append(compact(widened, sorted(set(plane.axes) | (padded & set(plane.axes)))))
    return follower.value(node, tuple(planes), x.weight)


# ------------------------------------------------------------------ shape operators, executed on labels


@rule(
    "permute", "transpose", "t", "mT", "numpy_T", "flatten", "unsqueeze", "movedim", "moveaxis",
    "swapaxes", "swapdims", "squeeze", "repeat", "tile", "repeat_interleave", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "flip", "rot90", "tril", "triu", "view_as_complex",
)  # fmt: skip
def executed(follower: Follower, node: fx.Node) -> Values:
    """Run the operator itself on the label tensors: labels land where the values land."""
    x = follower.input(node, 0)
    return follower.execute(node, x, list(node.args[1:]), dict(node.kwargs))


@rule("roll")
def roll(follower: Follower, node: fx.Node) -> Values:
    """Rolling positions passes; rolling channels moves labels by a constant."""
    return executed(follower, node)


@rule("view", "reshape", "_unsafe_view", "unflatten", "_reshape_alias")
def reshape(follower: Follower, node: fx.Node) -> Values:
    """Reshape the labels; equal parts of a split axis must stay equal in size."""
    x = follower.input(node, 0)
    target = follower.reshaped(node, x, follower.meta_shape(node, 0), shape_of(node))
    return _reshaped(follower, node, x, target)


@rule("reshape_as", "view_as")
def reshape_as(follower: Follower, node: fx.Node) -> Values:
    """Reshape to another value's (current) shape."""
    return _reshaped(follower, node, follower.input(node, 0), follower.input(node, 1).shape)


def _reshaped(follower: Follower, node: fx.Node, x: Value, target: tuple[int, ...]) -> Value:
    if math.prod(x.shape) != math.prod(target):
        raise ResizeError(
            f"{'x'.join(map(str, x.shape))} does not reshape to {'x'.join(map(str, target))} at {describe(node)}"
        )
    planes = []
    for index, plane in enumerate(x.planes):
        labels = full(plane, x.shape).reshape(target)
        planes.append(compact(labels, follower.known_axes(node, index)))
    for plane in planes:
        if len(plane.axes) > 1:  # parts of a split axis: rows of equal length
            follower.ledger.equal_parts.append(plane.labels.reshape(-1, plane.labels.size(plane.axes[-1])))
    return follower.value(node, tuple(planes), x.weight)


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
        planes.insert(0, _concatenate(values, joined, axis, ndim))
    return follower.value(node, tuple(planes), all(v.weight for v in values))


def _concatenate(values: list[Value], planes: list[Plane | None], axis: int, ndim: int) -> Plane:
    axes = sorted({a for p in planes if p is not None for a in p.axes})
    parts = []
    for value, plane in zip(values, planes, strict=True):
        shape = [value.shape[a] if a in axes else 1 for a in range(ndim)]
        if plane is None:
            parts.append(torch.full(shape, NEUTRAL, dtype=torch.int32))
        else:
            parts.append(plane.labels.expand(shape))
    return Plane(torch.cat(parts, axis), tuple(axes))


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
        axes = sorted({a for p in row if p is not None for a in p.axes})
        parts = []
        for value, plane in zip(values, row, strict=True):
            shape = [value.shape[a] if a in axes else 1 for a in range(ndim - 1)]
            neutral = torch.full(shape, NEUTRAL, dtype=torch.int32)
            parts.append(neutral if plane is None else plane.labels.expand(shape))
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
    equal = len(set(old)) == 1 and operator_name(node) != "split_with_sizes"
    sizes = follower.part_sizes(node, x, axis, old, equal)
    plane = x.plane_at(axis)
    if equal and plane is not None and len(old) > 1:
        first = plane.labels
        for other in plane.axes:
            first = first if other == axis else first.narrow(other, 0, 1)
        follower.ledger.equal_parts.append(first.reshape(len(old), -1))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        follower.value(node, _cut(x, axis, start, size), x.weight, output=i)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


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
    if step != 1:
        follower.ledger.freeze(plane.labels, f"every {step}th channel is taken at {describe(node)}")
    sizes = follower.part_sizes(node, x, axis, [start, stop - start, length - stop], False)
    planes = _cut(x, axis, sizes[0], sizes[1])
    if step != 1:
        planes = tuple(
            Plane(p.labels[(slice(None),) * axis + (slice(None, None, step),)], p.axes) if axis in p.axes else p
            for p in planes
        )
    return follower.value(node, planes, x.weight)


@rule("select", "unbind")
def select(follower: Follower, node: fx.Node) -> Values:
    """Take single positions along one axis (fixed if channels lie along it)."""
    x = follower.input(node, 0)
    axis = int(argument(node, "dim", 0)) % x.ndim
    if (plane := x.plane_at(axis)) is not None:
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


@rule("copy_", "copy")
def copy(follower: Follower, node: fx.Node) -> Values:
    """Writing into a view: what is written is tied to what it replaces."""
    return elementwise(follower, node)


# ------------------------------------------------------------------ everything else


def opaque(follower: Follower, node: fx.Node) -> Values:
    """No rule: freeze what enters, and emit frozen labels so that what meets them is frozen too."""
    inputs = follower.tensor_inputs(node)
    labelled = [v for v in inputs if v.planes]
    outputs = node.meta.get("val")
    single = not isinstance(outputs, tuple | list)
    listed = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    shapes = [o.shape if isinstance(o, Tensor) else () for o in listed]
    if not labelled:
        plain = [Value(tuple(s), weight=all(v.weight for v in inputs)) for s in shapes]
        return plain[0] if single else plain
    reason = f"convwright has no rule for {describe(node)}"
    for value in labelled:
        follower.ledger.freeze_value(value, reason)
    follower.unknown.append(node)
    frozen = [_frozen_value(follower, tuple(s), reason) for s in shapes]
    return frozen[0] if single else frozen


def _frozen_value(follower: Follower, shape: tuple[int, ...], reason: str) -> Value:
    atom = follower.ledger.fresh(1)
    follower.ledger.freeze(atom, reason)
    planes = []
    for axis, size in enumerate(shape):
        if size > 1 and axis > 0:
            planes.append(line_plane(atom.expand(size), axis, len(shape)))
    return Value(with_sizes(shape, planes), tuple(planes))
