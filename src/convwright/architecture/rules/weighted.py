"""Operators with weights: their input axis consumes channels, their output axis produces them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import argument, describe, operator_name, shape_of
from convwright.architecture.labels import NEUTRAL, Value, Values, along, line_plane
from convwright.architecture.rules.registry import opaque, per_group, rule, tie_rows

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


@rule("embedding")
def embedding(follower: Follower, node: fx.Node) -> Values:
    """A table's columns are channels along a new last axis; which of its rows are taken, the numbers say."""
    reason = f"they are numbers of rows, or rows, of the table of {describe(node)}"
    follower.ledger.freeze_value(follower.input(node, "indices"), reason)
    if (rows := follower.weight_line(node, "weight", 0)) is not None:
        follower.ledger.freeze(rows, reason)
    made, ndim = follower.weight_line(node, "weight", 1), len(shape_of(node))
    if made is None:
        return follower.value(node, [])
    follower.ledger.produce(made, follower.owner(node))
    return follower.value(node, [line_plane(made, ndim - 1, ndim)])


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
        states.append(_cell(follower, node, labels, own, gates))
        ledger.tie(states[-1], states[0])
    for given in follower.tensor_inputs(node)[1 : -len(weights)]:  # the first states
        ledger.tie(states[0] if (line := along(ledger, given, 2)) is None else line, states[0])
    for plane in (p for p in x.planes if 2 not in p.axes):
        ledger.freeze(plane.labels, f"they lie along steps or samples of {describe(node)}")
    out = torch.cat(states[-ways:])
    ledger.produce(out, follower.owner(node))
    lines = [out, *[states[0]] * (len(node.meta["val"]) - 1)]
    return [follower.value(node, [line_plane(line, 2, 3)], output=i) for i, line in enumerate(lines)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(follower: Follower, node: fx.Node) -> Values:
    """One step of a recurrent layer."""
    names = [name for name in ("w_ih", "w_hh", "b_ih", "b_hh") if isinstance(argument(node, name), fx.Node)]
    own, before = [argument(node, name) for name in names], argument(node, "hx")
    if 1 in shape_of(own[1]):
        return opaque(follower, node)
    gates = shape_of(own[1])[0] // shape_of(own[1])[1]
    state = _cell(follower, node, follower.channels(follower.input(node, 0), 1, node), own, gates)
    for given in before if isinstance(before, list | tuple) else (before,):
        if (line := along(follower.ledger, follower.resolve(given), 1)) is not None:
            follower.ledger.tie(line, state)
    follower.ledger.produce(state, follower.owner(node))
    if not isinstance(node.meta["val"], list | tuple):
        return follower.value(node, [line_plane(state, 1, 2)])
    return [follower.value(node, [line_plane(state, 1, 2)], output=i) for i in range(len(node.meta["val"]))]


def _cell(follower: Follower, node: fx.Node, labels: Tensor | None, own: Sequence[fx.Node], gates: int) -> Tensor:
    """Tie the gates of a cell: its input is consumed, its state produced and consumed; return the state's labels."""
    ledger, inner = follower.ledger, follower.weight_line(node, own[0], 1, None if labels is None else labels.numel())
    _consume(follower, node, labels, inner, 1)
    axes = (*((weight, 0) for weight in own), (own[1], 1))
    *rows, back = (line for weight, axis in axes if (line := follower.weight_line(node, weight, axis)) is not None)
    tie_rows(follower, rows[0], gates, node)
    state = rows[0].reshape(gates, -1)[0]
    for row in rows:
        ledger.tie(row, rows[0])
        ledger.carry(row)
    ledger.consume(back)
    ledger.tie(back, state)
    return state
