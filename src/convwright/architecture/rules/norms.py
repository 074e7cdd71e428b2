"""Normalisation: scales, shifts and statistics follow the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from convwright.architecture.capture.exported import argument, describe, operator_name
from convwright.architecture.labels import Values, merge
from convwright.architecture.rules.registry import across, rule, tie_rows

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


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


@rule("local_response_norm")
def local_response_norm(follower: Follower, node: fx.Node) -> Values:
    """Labels pass; neighbours across channels enter the statistic."""
    x = follower.input(node, 0)
    across(follower, x, (1,), node)
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
