"""Elementwise operators: operands that vary along the same axes are tied, labels pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from convwright.architecture.capture.exported import argument, as_dims, shape_of
from convwright.architecture.labels import Value, Values, along, merge
from convwright.architecture.rules.registry import across, rule

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


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
