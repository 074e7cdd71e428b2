"""Elementwise operators: operands that vary along the same axes are tied, labels pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from convwright.architecture.capture.exported import argument, as_dims, shape_of
from convwright.architecture.labels import Value, Values, along, line_plane, merge
from convwright.architecture.rules.registry import across, rule

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "clone", "contiguous",
    "detach", "alias", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "conj", "copy",
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


@rule("copy_", "copy")
def copy(follower: Follower, node: fx.Node) -> Values:
    """Writing into a view: what is written is tied to what it replaces."""
    return elementwise(follower, node)
