"""Which layers write and read each channel group, and the quality of groups and networks made of theirs.

The published code finds this by hand-written tables per family of networks. Here it is read from the channel labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, shape_of
from convwright.architecture.labels import Value

Side = Literal["in", "out"]
PerLayer = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Member:
    """One side of a layer whose channels belong to a group.

    Attributes:
        layer: its name.
        mode: ``"out"`` if it writes the group, ``"in"`` if it reads it. A depthwise layer, which does both at once,
            is there with ``"out"``.
        weight: share of the rows of that side that belong to the group; below 1 behind a concatenation.
    """

    layer: str
    mode: Side
    weight: float = 1.0


def members(arch: Architecture) -> dict[str, tuple[Member, ...]]:
    """Return, for each free channel group, the convolutions that write it and read it.

    A convolution that reads a concatenation is a member of the group of each segment. A layer called several times
    counts once. Linear layers are no members, but where a group has no others: their ranks are not comparable.

    Args:
        arch: the network.

    Returns:
        Group name -> its members in execution order; empty where none could be found.

    Examples:
        >>> import convwright as cw
        >>> from convwright.metrics.quality.channel_quality import members
        >>> [(m.layer, m.mode) for m in members(cw.read("zoo:resnet20"))["layer1.0.conv1"]]
        [('layer1.0.conv1', 'out'), ('layer1.0.conv2', 'in')]
    """
    convs, linears = _members_of(arch, "conv"), _members_of(arch, "linear")
    return {group.name: tuple(convs.get(group.name) or linears.get(group.name) or ()) for group in arch.free_groups}


def group_qualities(
    members_of: Architecture | Mapping[str, Sequence[Member]], per_layer: PerLayer, *, weighted: bool = False
) -> dict[str, float]:
    """Return the mean value of each group's members.

    Args:
        members_of: the network, or what ``members`` found.
        per_layer: layer -> (its value as a reader, as a writer); None or left out where there is none.
        weighted: count each member by its share of the layer's rows, and not all alike as published.

    Returns:
        Group name -> mean; 0 where no member has a value.
    """
    known = members_of if isinstance(members_of, Mapping) else members(members_of)
    found = {}
    for group, listed in known.items():
        pairs = [
            (value, member.weight if weighted else 1.0)
            for member in listed
            if (value := per_layer.get(member.layer, (None, None))[member.mode == "out"]) is not None
        ]
        total = sum(weight for _, weight in pairs)
        found[group] = sum(value * weight for value, weight in pairs) / total if total else 0.0
    return found


def network_quality(groups: Mapping[str, float]) -> float:
    """Return the mean over groups; 0 where there are none."""
    return sum(groups.values()) / len(groups) if groups else 0.0


def _members_of(arch: Architecture, kind: str) -> dict[str, list[Member]]:
    nodes = {node.name: node for node in arch.capture.graph.nodes}
    found: dict[str, list[Member]] = {}
    seen = set()
    for layer in arch.layers:
        node = nodes[layer.node]
        weight = argument(node, "weight")
        if layer.kind != kind or not isinstance(weight, fx.Node) or weight.name in seen:
            continue
        seen.add(weight.name)
        for side, axis in _sides(layer, node, weight):
            for group, share in _shares(arch, weight, axis).items():
                found.setdefault(group, []).append(Member(layer.name, side, share))
    return found


def _sides(layer: Layer, node: fx.Node, weight: fx.Node) -> list[tuple[Side, int]]:
    """Return which axis of a weight holds rows of which side; those of one row are left out."""
    transposed = "transpose" in layer.operator or bool(argument(node, "transposed", False))
    shape = shape_of(weight)
    if shape[1] == 1:  # depthwise: one axis holds the channels that it reads and writes
        return [("out", 0)] if shape[0] > 1 else []
    writes, reads = (1, 0) if transposed else (0, 1)
    sides: list[tuple[Side, int]] = [("out", writes), ("in", reads)]
    return [(side, axis) for side, axis in sides if shape[axis] > 1]


def _shares(arch: Architecture, weight: fx.Node, axis: int) -> dict[str, float]:
    """Return the groups along one axis of a weight, and the share of its entries that each has."""
    value = arch.channels.follower.values[weight.name]
    plane = value.plane_at(axis) if isinstance(value, Value) else None
    if plane is None:
        return {}
    counts = arch.channels.count(plane.labels)[:-1]
    total = plane.labels.numel()
    return {arch.groups[i].name: float(counts[i]) / total for i in counts.nonzero()[0].tolist()}
