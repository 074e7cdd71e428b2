"""Where a linear layer reads a flattened map: the shape of that map."""

from __future__ import annotations

from convwright.architecture.capture.exported import operator_name, shape_of
from convwright.architecture.flow import Flow, Shape
from convwright.architecture.layers import Layer, kind_of

_FLATTENS = frozenset({"flatten", "view", "reshape", "_unsafe_view"})
_NOTHING = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "to"})


def flattened_map(flow: Flow, layer: Layer) -> Shape:
    """Return the shape (n, channels, *spatial) of the map that a layer's input was flattened from.

    Between flattening and layer there may be dropout and activations, which treat all positions alike. The channels
    must vary slowest, as ``flatten(1)`` of a map (n, c, h, w) leaves them.

    Returns:
        The shape; empty where the layer reads no flattened map, or the network's input itself.
    """
    target = flow.place[layer.node]
    position = flow.feeds[target][0] if len(flow.feeds[target]) == 1 else -1
    rows = shape_of(flow.nodes[position]) if position >= 0 else ()
    if len(rows) != 2:
        return ()
    while position >= 0 and shape_of(flow.nodes[position]) == rows:
        position = _before(flow, position)
    found = shape_of(flow.nodes[position]) if position >= 0 else ()
    if len(found) < 3 or found[0] != rows[0] or not flow.feeds[position]:
        return ()
    return found if _channels_slowest(flow, position) else ()


def _before(flow: Flow, position: int) -> int:
    """Return what a node that mixes no elements got; -1 if it does more."""
    node, feeds = flow.nodes[position], flow.feeds[position]
    light = operator_name(node) in _FLATTENS | _NOTHING or kind_of(node) == "activation"
    return feeds[0] if light and len(feeds) == 1 else -1


def _channels_slowest(flow: Flow, position: int) -> bool:
    """Whether the channels of a map lie on its second axis."""
    value = flow.channels.follower.values.get(flow.nodes[position].name)
    if value is None or isinstance(value, list):
        return False
    return [plane.axes for plane in value.planes] == [(1,)]
