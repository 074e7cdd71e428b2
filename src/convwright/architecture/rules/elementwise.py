"""Elementwise operators and normalisation: operands that vary along the same axes are tied, labels pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from convwright.architecture.capture.graph import argument, as_dims, describe, operator_name, shape_of
from convwright.architecture.labels import Value, Values, along, line_plane, merge
from convwright.architecture.rules.registry import across, opaque, rule, tie_rows

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "clone", "contiguous",
    "detach", "alias", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "conj", "copy", "copy_",
    "zeros_like", "ones_like", "full_like", "rand_like", "empty_like", "rsub", "addcmul", "lerp",
    "where", "fill", "zero", "softplus", "bernoulli", "_assert_tensor_metadata", "float", "half",
    "masked_fill", "__and__", "__or__", "silu", "hardswish", "gelu", "elu", "selu", "celu",
    "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "mish", "threshold", "rrelu", "log_sigmoid", "randn_like",
    "randint_like", "real", "imag", "complex", "_conj", "resolve_conj", "polar",
)  # fmt: skip
def elementwise(follower: Follower, node: fx.Node) -> Values:
    """Tie operands that vary along the same axes; labels pass."""
    values = follower.tensor_inputs(node)
    if not values:
        return Value(shape_of(node))
    ndim = len(shape_of(node))
    planes = merge(follower.ledger, values, ndim)
    return follower.value(node, planes, all(v.weight for v in values))


@rule("type_as")
def first(follower: Follower, node: fx.Node) -> Values:
    """The first operand's labels pass; the other gives its dtype only."""
    x = follower.input(node, 0)
    return follower.value(node, x.planes, x.weight)


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def constant(follower: Follower, node: fx.Node) -> Values:
    """Equal entries everywhere: an axis has as many as what it meets. An operand gives dtype and device only."""
    shape = shape_of(node)
    axes = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    sizes = [shape[axis] for axis in axes]
    if follower.guide is not None:
        planes = follower.guide.value(follower.key(node)).planes
        sizes = [follower.guide.new_length(plane.labels) for plane in planes]
    rows = [follower.ledger.fresh(size) for size in sizes]
    return follower.value(node, [line_plane(r, a, len(shape)) for r, a in zip(rows, axes, strict=True)], weight=True)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "normalize", "cumsum")
def softmax(follower: Follower, node: fx.Node) -> Values:
    """Labels pass; if the normalised axis is a channel axis, a statistic runs across it."""
    x = follower.input(node, 0)
    dims = as_dims(argument(node, "dim"), x.ndim)
    across(follower, x, dims, node)
    return follower.value(node, x.planes, x.weight)


@rule("prelu")
def prelu(follower: Follower, node: fx.Node) -> Values:
    """The slope has one entry, or one per channel (axis 1)."""
    x = follower.input(node, 0)
    follower.attach(node, "weight", along(follower.ledger, x, 1))
    return follower.value(node, x.planes)


@rule("index_put")
def masked_number(follower: Follower, node: fx.Node) -> Values:
    """A number written where a mask of the value's own shape says so (``x[x < 0] = 0``)."""
    masks = [each.meta["val"] for each in argument(node, "indices") if isinstance(each, fx.Node)]
    number = [(mask.shape, mask.dtype) for mask in masks] == [(shape_of(node), torch.bool)]
    number = number and not follower.meta_shape(node, "values")
    return elementwise(follower, node) if number else opaque(follower, node)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(follower: Follower, node: fx.Node) -> Values:
    """Scale, shift and running statistics follow axis 1."""
    x = follower.input(node, 0)
    if x.planes or any(follower.optional_input(node, n) for n in ("weight", "running_mean")):
        labels = follower.channels(x, 1, node) if x.ndim > 1 else None
        for name in ("weight", "bias", "running_mean", "running_var"):
            follower.attach(node, name, labels)
    if x.weight:  # standardised weights: the statistic runs over the input axis
        across(follower, x, range(2, x.ndim), node)
    return follower.value(node, x.planes, x.weight)


@rule("layer_norm", "rms_norm")
def layer_norm(follower: Follower, node: fx.Node) -> Values:
    """A statistic over the last axes; scale and shift follow them."""
    x = follower.input(node, 0)
    normalized = len(argument(node, "normalized_shape"))
    dims = range(x.ndim - normalized, x.ndim)
    across(follower, x, dims, node)
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
        if groups > 1 and groups == follower.meta_shape(node, 0)[1]:
            follower.ledger.freeze(labels, f"each channel is a group of its own at {describe(node)}")
        elif groups > 1:
            tie_rows(follower, labels, groups, node)
    for name in ("weight", "bias"):
        follower.attach(node, name, labels)
    return follower.value(node, x.planes)


@rule("_weight_norm")
def weight_norm(follower: Follower, node: fx.Node) -> Values:
    """A direction, normalised over all axes but one, times a gain along that one."""
    direction, gain = follower.input(node, 0), follower.input(node, 1)
    kept = int(argument(node, "dim", 0))
    across(follower, direction, set(range(direction.ndim)) - {kept % direction.ndim}, node)
    inner = 0 if any("transpose" in operator_name(user) for user in node.users) else 1
    parts = [gain, direction] if kept == inner else [direction, gain]  # copies on an input axis share the gain
    planes = merge(follower.ledger, parts, direction.ndim)
    return follower.value(node, planes, weight=True)
