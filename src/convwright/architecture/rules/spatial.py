"""Reductions, pooling, resampling, padding: channels pass, other axes shrink or vanish."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from convwright.architecture.capture.exported import argument, as_dims, describe
from convwright.architecture.labels import Plane, Value, Values, compact, full, line_plane, merge, narrowed, reduce_axes
from convwright.architecture.rules.elementwise import elementwise
from convwright.architecture.rules.registry import across, rule

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


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
        reason = f"channels are padded by a constant at {describe(node)}"
        follower.ledger.freeze(plane.labels, reason)
        atom = follower.ledger.fresh(1)
        follower.ledger.freeze(atom, reason)
        widened = torch.nn.functional.pad(full(plane, x.shape), amounts, value=int(atom))
        planes.append(compact(widened, sorted(set(plane.axes) | (padded & set(plane.axes)))))
    return follower.value(node, tuple(planes), x.weight)
