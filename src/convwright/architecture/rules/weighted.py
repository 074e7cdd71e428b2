"""Operators with weights: their input axis consumes channels, their output axis produces them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import argument, describe, einsum_operands, operator_name, shape_of
from convwright.architecture.labels import NEUTRAL, Plane, Value, Values, along, line_plane, merge, reduce_axes
from convwright.architecture.rules.registry import across, opaque, per_group, rule, tie_rows

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(follower: Follower, node: fx.Node) -> Values:
    """Input labels meet the weight's input axis; the weight's output axis is emitted."""
    if argument(node, "transposed", False):
        return transposed_convolution(follower, node)
    x, weight = follower.input(node, "input"), follower.input(node, "weight")
    axis = x.ndim - weight.ndim + 1
    groups = int(argument(node, "groups", 1))
    labels = follower.channels(x, axis, node)
    if groups > 1 and groups == follower.meta_shape(node, "input")[axis] and weight.shape[1] == 1:
        return _depthwise(follower, node, x, axis, labels)
    share = per_group(node, x.shape[axis], groups)
    inner = follower.weight_line(node, "weight", 1, share)
    outer = follower.weight_line(node, "weight", 0)
    _consume(follower, node, labels, inner, groups)
    if outer is not None:
        if groups > 1:
            tie_rows(follower, outer, groups, node)
        follower.ledger.produce(outer, follower.owner(node))
    return _convolved(follower, node, x, axis, outer, groups)


def _depthwise(follower: Follower, node: fx.Node, x: Value, axis: int, labels: Tensor | None) -> Value:
    """One filter (or ``m``) per channel: output channels follow input channels."""
    channels = x.shape[axis]
    old = follower.meta_shape(node, "input")[axis]
    times = follower.meta_shape(node, "weight")[0] // old
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
        table = labels.reshape(groups, -1)
        ledger.tie_rows(table if inner is None else torch.cat([inner[None], table]))
        labels = table[0]
    if inner is None:
        if labels is not None and labels.numel() != 1:
            ledger.freeze(labels, f"a computed weight hides its input axis at {describe(node)}")
        return
    ledger.consume(inner)
    if labels is None:
        ledger.freeze(inner, f"its input carries no channels at {describe(node)}")
    else:
        if groups == 1:
            ledger.tie(labels, inner)
        unlabelled = inner[labels == NEUTRAL]
        if unlabelled.numel():
            ledger.freeze(unlabelled, f"part of its input carries no channels at {describe(node)}")


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
    follower.attach(node, "bias", emitted)
    return follower.value(node, planes)


@rule("deform_conv2d")
def deformable_convolution(follower: Follower, node: fx.Node) -> Values:
    """A convolution that reads moved positions; the kernel says how many offsets and masks there are."""
    for name in ("offset", "mask"):
        reason = f"their number follows from the kernel of {describe(node)}"
        follower.ledger.freeze_value(follower.input(node, name), reason)
    x, parts = follower.input(node, "input"), int(argument(node, "offset_groups", 1))
    if parts > 1 and (labels := follower.channels(x, 1, node)) is not None:
        tie_rows(follower, labels, parts, node)
    return convolution(follower, node)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(follower: Follower, node: fx.Node) -> Values:
    """Weight (in, out / groups, ...): the input axis is whole, the output axis one group's share."""
    x, weight = follower.input(node, "input"), follower.input(node, "weight")
    axis = x.ndim - weight.ndim + 1
    groups = int(argument(node, "groups", 1))
    labels = follower.channels(x, axis, node)
    depthwise = groups > 1 and groups == follower.meta_shape(node, "input")[axis]
    inner = follower.weight_line(node, "weight", 0, x.shape[axis])
    outer = follower.weight_line(node, "weight", 1)
    ledger = follower.ledger
    if depthwise and weight.shape[1] == 1:
        if inner is not None and labels is not None:
            ledger.tie(labels, inner)
            ledger.carry(inner)
        return _convolved(follower, node, x, axis, labels, x.shape[axis])
    if inner is not None and groups > 1:
        tie_rows(follower, inner, groups, node)
    _consume(follower, node, labels, inner, 1)
    emitted = None if outer is None else outer.repeat(groups)
    if emitted is not None:
        ledger.produce(emitted, follower.owner(node))
    return _convolved(follower, node, x, axis, emitted, groups)


@rule("linear")
def linear(follower: Follower, node: fx.Node) -> Values:
    """Like a 1x1 convolution on the last axis; other axes pass."""
    x, weight = follower.input(node, "input"), follower.input(node, "weight")
    if weight.ndim != 2:
        return opaque(follower, node)
    axis = x.ndim - 1
    labels = follower.channels(x, axis, node)
    inner = follower.weight_line(node, "weight", 1, x.shape[axis])
    outer = follower.weight_line(node, "weight", 0)
    _consume(follower, node, labels, inner, 1)
    planes = [p for p in x.planes if axis not in p.axes]
    if outer is not None:
        follower.ledger.produce(outer, follower.owner(node))
        planes.append(line_plane(outer, axis, x.ndim))
    follower.attach(node, "bias", outer)
    return follower.value(node, planes, x.weight)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(follower: Follower, node: fx.Node) -> Values:
    """The gates of a hidden channel are tied, in all layers and directions; what a step gives, the next consumes."""
    x, weights, ledger = follower.input(node, "input"), argument(node, "params"), follower.ledger
    ways, gates = 1 + bool(argument(node, "bidirectional")), {"lstm": 4, "gru": 3}.get(operator_name(node), 1)
    each = 4 if argument(node, "has_biases") else 2
    whole = isinstance(weights, list | tuple) and len(weights) == int(argument(node, "num_layers")) * ways * each
    if not whole or x.ndim != 3 or 1 in shape_of(weights[1]):  # packed sequences, projections; one hidden channel
        return opaque(follower, node)
    labels, states = follower.channels(x, 2, node), list[Tensor]()
    for own in (weights[cell : cell + each] for cell in range(0, len(weights), each)):
        if states and len(states) % ways == 0:
            labels = torch.cat(states[-ways:])
        inner = follower.weight_line(node, own[0], 1, None if labels is None else labels.numel())
        _consume(follower, node, labels, inner, 1)
        axes = (*((weight, 0) for weight in own), (own[1], 1))
        *rows, back = (line for weight, axis in axes if (line := follower.weight_line(node, weight, axis)) is not None)
        tie_rows(follower, rows[0], gates, node)
        states.append(rows[0].reshape(gates, -1)[0])
        for row in rows:
            ledger.tie(row, rows[0])
            ledger.carry(row)
        ledger.consume(back)
        ledger.tie(torch.stack([back, states[-1]]), states[0])
    for given in follower.tensor_inputs(node)[1 : -len(weights)]:  # the first states
        ledger.tie(states[0] if (line := along(ledger, given, 2)) is None else line, states[0])
    for plane in (p for p in x.planes if 2 not in p.axes):
        ledger.freeze(plane.labels, f"they lie along steps or samples of {describe(node)}")
    out = torch.cat(states[-ways:])
    ledger.produce(out, follower.owner(node))
    lines = [out, *[states[0]] * (len(node.meta["val"]) - 1)]
    return [follower.value(node, [line_plane(line, 2, 3)], output=i) for i, line in enumerate(lines)]


@rule("matmul", "mm", "bmm")
def matmul(follower: Follower, node: fx.Node) -> Values:
    """Rows and columns pass; the contracted axis is tied; a product of two activations is frozen."""
    a, b = follower.input(node, 0), follower.input(node, 1)
    if a.ndim < 2 or b.ndim < 2 or not (a.weight or b.weight):
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
    return follower.value(node, planes, a.weight and b.weight)


@rule("einsum")
def einsum(follower: Follower, node: fx.Node) -> Values:
    """A product with a weight, its axes named by letters: shared letters are tied, summed ones consumed."""
    operands = einsum_operands(node)
    values = [follower.resolve(operand) for operand, _ in operands]
    if len(values) != 2 or not any(v.weight for v in values):
        return opaque(follower, node)
    ledger, out = follower.ledger, str(node.args[0]).replace(" ", "").partition("->")[2]
    terms = [letters for _, letters in operands]
    which = 1 if values[1].weight else 0
    for letter in set(terms[0]) & set(terms[1]):
        own, other = (along(ledger, values[i], terms[i].index(letter)) for i in (which, 1 - which))
        if own is None:
            continue
        if other is None:
            ledger.freeze(own, f"its input carries no channels at {describe(node)}")
        else:
            ledger.tie(own, other)
        if letter not in out:
            ledger.consume(own)
    placed = [_placed(follower, v, term, out) for v, term in zip(values, terms, strict=True)]
    for plane in placed[which].planes:
        if not any(set(plane.axes) & set(other.axes) for other in placed[1 - which].planes):
            ledger.produce(plane.labels, follower.owner(node))
    return follower.value(node, merge(ledger, placed, len(out)), all(v.weight for v in values))


def _placed(follower: Follower, x: Value, term: str, out: str) -> Value:
    """Bring the planes of an operand into the order of the result's letters."""
    left = [letter for letter in term if letter in out]
    planes = []
    for plane in reduce_axes(follower.ledger, x, [i for i, each in enumerate(term) if each not in out], keepdim=False):
        order = sorted(range(len(left)), key=lambda i: out.index(left[i]))
        sizes = {left[i]: plane.labels.size(i) for i in order}
        labels = plane.labels.permute(order).reshape([sizes.get(letter, 1) for letter in out])
        planes.append(Plane(labels, tuple(sorted(out.index(left[axis]) for axis in plane.axes))))
    return Value((1,) * len(out), tuple(planes))  # merging asks for the rank alone


@rule("mv", "dot", "vdot")
def inner_product(follower: Follower, node: fx.Node) -> Values:
    """A matrix or a vector times a vector, of weights: the norm that spectral normalisation divides by."""
    a, b = follower.input(node, 0), follower.input(node, 1)
    if not (a.weight and b.weight):
        return opaque(follower, node)
    ledger = follower.ledger
    left, right = along(ledger, a, a.ndim - 1), along(ledger, b, 0)
    across(follower, a, (a.ndim - 1,), node)
    if left is not None and right is not None:
        ledger.tie(left, right)
    for labels in (left, right):
        if labels is not None:
            ledger.carry(labels)
    rows = along(ledger, a, 0) if a.ndim == 2 else None
    return follower.value(node, [] if rows is None else [line_plane(rows, 0, 1)], weight=True)
