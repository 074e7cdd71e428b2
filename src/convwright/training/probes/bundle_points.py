"""Where in a network conflicting bundles are looked for: branch and output of each block, or single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import branch_values, outermost
from convwright.architecture.capture.exported import operator_name
from convwright.architecture.layers import kind_of
from convwright.errors import ReadError
from convwright.training.probes.taps import Tap, find_tap

Role = Literal["branch", "output", "layer"]
_WEIGHTED = frozenset({"conv", "linear", "matmul"})
_BEHIND = frozenset({"norm", "activation"})
_ADDS = frozenset({"add", "__add__", "__iadd__"})


@dataclass(frozen=True)
class BundlePoint:
    """A value that bundles are counted of.

    Attributes:
        name: of the block or layer.
        role: ``branch`` is a residual block's branch before the addition, ``output`` what a block hands on, after the
            activation that follows; ``layer`` a single layer's output after norm and activation.
        tap: where it appears.
        norms: batch norms in the branch; the published code multiplies the branch by one over the spread of what
            enters each.
    """

    name: str
    role: Role
    tap: Tap
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Points:
    """All points of a network, in the order of execution.

    Attributes:
        points: them.
        own: block or layer -> the number of the point that judges it: the branch of a residual block, else the output.
        skipped: what could not be looked at -> why.
    """

    points: tuple[BundlePoint, ...]
    own: Mapping[str, int]
    skipped: Mapping[str, str]


def find_points(arch: Architecture, layers: Sequence[str] | None = None) -> Points:
    """Find the points of a network.

    Args:
        arch: the network.
        layers: names of layers to look at; None: the blocks, or in a network without blocks each layer with
            weights except the last.

    Returns:
        The points; none where nothing has weights.

    Raises:
        ReadError: a layer that is named cannot be looked at.
        EditError: there is no layer of that name.
    """
    if layers is not None:
        return _points_of_layers(arch, layers, named=True)
    blocks = outermost(arch.flow, arch.blocks)
    if not blocks:
        weighted = [layer.name for layer in arch.layers if layer.kind in _WEIGHTED]
        return _points_of_layers(arch, weighted[:-1], named=False)
    points: list[BundlePoint] = []
    own: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for block in blocks:
        found, reason = _points_of_block(arch, block)
        if found:
            own[block.name] = len(points)
        if reason:
            skipped[block.name] = reason
        points += found
    return Points(tuple(points), own, skipped)


def branch_tap(arch: Architecture, block: Block) -> Tap | None:
    """Return where a residual block's branch ends, before the addition; None if it has several or is out of reach."""
    ends = branch_values(arch.flow, block)
    if len(ends) != 1:
        return None
    added = (user for user in ends[0].users if user in arch.flow.position and operator_name(user) in _ADDS)
    return find_tap(arch, ends[0], next(added, None))


def _points_of_block(arch: Architecture, block: Block) -> tuple[list[BundlePoint], str]:
    leaving = arch.flow.nodes[arch.flow.place[block.exit]]
    found, reason = [], ""
    if block.kind == "residual":
        tap = branch_tap(arch, block)
        if tap is not None:
            modules: Mapping[str, nn.Module] = dict(arch.model.named_modules())
            norms = tuple(name for name in block.branch if isinstance(modules.get(name), _BatchNorm))
            found.append(BundlePoint(block.name, "branch", tap, norms))
        else:
            reason = "several branches meet in its addition, so that none can be looked at alone: judged by its output"
    tap = find_tap(arch, _behind(arch, leaving, frozenset({"activation"})))
    if tap is not None:
        found.append(BundlePoint(block.name, "output", tap))
    return found, reason


def _behind(arch: Architecture, node: fx.Node, kinds: frozenset[str]) -> fx.Node:
    """Return the last of the norms and activations that alone take a value."""
    flow = arch.flow
    while node.name not in flow.returned:
        users = flow.users[flow.place[node.name]]
        following = flow.nodes[users[0]] if len(users) == 1 else None
        if following is None or kind_of(following) not in kinds or len(flow.feeds[users[0]]) != 1:
            break
        node = following
    return node


def _points_of_layers(arch: Architecture, names: Sequence[str], named: bool) -> Points:
    points: list[BundlePoint] = []
    for name in dict.fromkeys(names):
        layer = arch.layer(name)
        node = arch.flow.nodes[arch.flow.place[layer.node]]
        tap = find_tap(arch, node if named else _behind(arch, node, _BEHIND))
        if tap is None:
            raise ReadError(f"{arch.source}: the output of layer {name!r} is out of reach; name a module called once")
        points.append(BundlePoint(layer.name, "layer", tap))
    return Points(tuple(points), {point.name: number for number, point in enumerate(points)}, {})
