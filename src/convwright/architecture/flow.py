"""The flow of values through a captured network: who feeds whom, what dominates what, which module holds what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import takewhile

from torch import fx, nn

from convwright.architecture.capture.graph import Capture, module_path, module_paths, operator_name, shape_of
from convwright.architecture.channels import ChannelGraph
from convwright.architecture.labels import Value
from convwright.architecture.layers import Layer, kind_of

Shape = tuple[int, ...]
# Operators between a map and a layer that reads it flattened.
_ROWS_KEPT = frozenset({
    "flatten", "view", "reshape", "_unsafe_view", "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous",
    "alias", "detach", "to",
})  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A unit that depth edits add or remove.

    Attributes:
        name: unique; the module that holds it, e.g. ``layer1.0``, with ``#2`` where a module holds
            several, or the first convolution where a flat ``Sequential`` holds a run of layers.
        kind: ``"residual"`` (input added to a branch) or ``"plain"`` (a repeated unit).
        layers: names of its layers, in execution order.
        input_shape: shape of what enters.
        output_shape: shape of what leaves.
        entry: graph node whose value enters (it lies before the block).
        exit: graph node whose value leaves (the last node of the block).
        branch: of a residual block, the layers between the entry and the addition, shortcut left out.
        shortcut: of a residual block, the layers on the shortcut (a projection); empty if it has none.
        join: of a residual block, the graph node of the addition; empty for a plain unit.
        identity: whether the shortcut hands the entry on unchanged.
        modules: the modules, one after the other, that the block consists of; empty where it is only a part
            of a module (a module with two residual branches).
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    input_shape: Shape
    output_shape: Shape
    entry: str = ""
    exit: str = ""
    branch: tuple[str, ...] = ()
    shortcut: tuple[str, ...] = ()
    join: str = ""
    identity: bool = False
    modules: tuple[str, ...] = ()

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the input's shape, so that the block could be skipped."""
        return self.input_shape == self.output_shape


class Flow:
    """The graph without parameters: positions of nodes, who feeds whom, and immediate dominators."""

    def __init__(self, model: nn.Module, capture: Capture, channels: ChannelGraph, layers: Sequence[Layer]) -> None:
        self.model, self.capture, self.channels, self.layers = model, capture, channels, layers
        self.nodes: list[fx.Node] = []
        self.position: dict[fx.Node, int] = {}
        self.feeds: list[list[int]] = []
        self.dominator: list[int] = []
        self._depth: list[int] = []
        inputs = set(capture.inputs)
        for node in capture.graph.nodes:
            sources = [self.position[n] for n in node.all_input_nodes if n in self.position]
            if node.name in inputs or (node.op == "call_function" and sources):
                self.position[node] = len(self.nodes)
                self.nodes.append(node)
                self.feeds.append(sources)
                meet = reduce(self._meet, sources) if sources else -1
                self.dominator.append(meet)
                self._depth.append(self._depth[meet] + 1 if meet >= 0 else 0)

    def meet(self, positions: Iterable[int]) -> int:
        """Return the last value that every path to these positions passes (one of them, if the others need it)."""
        return reduce(self._meet, sorted(positions))

    def _meet(self, a: int, b: int) -> int:
        """Return the nearest node that dominates both (-1: they come from different inputs)."""
        while a != b and a >= 0 and b >= 0:
            if self._depth[a] >= self._depth[b]:
                a = self.dominator[a]
            else:
                b = self.dominator[b]
        return a if a == b else -1

    @cached_property
    def users(self) -> list[list[int]]:
        """Positions of the nodes that use each node's value."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for position, sources in enumerate(self.feeds):
            for source in sources:
                users[source].append(position)
        return users

    @cached_property
    def paths(self) -> list[tuple[str, ...]]:
        """The module path of each node, in parts."""
        return [tuple(p for p in module_path(n).split(".") if p) for n in self.nodes]

    @cached_property
    def returned(self) -> frozenset[str]:
        """Names of the nodes that the network returns."""
        return frozenset(self.capture.outputs)

    def between(self, entry: int, last: int) -> set[int]:
        """Return the nodes on paths from ``entry`` (left out) to ``last`` (included)."""
        found: set[int] = set()
        waiting = [] if last == entry else [last]
        while waiting:
            position = waiting.pop()
            if position not in found:
                found.add(position)
                waiting.extend(s for s in self.feeds[position] if s != entry)
        return found

    @cached_property
    def called(self) -> frozenset[str]:
        """Qualified names of the modules whose own ``forward`` ran: no ``ModuleList``, no row walked from outside."""
        return frozenset(path for node in self.capture.graph.nodes for path in module_paths(node))

    @cached_property
    def place(self) -> dict[str, int]:
        """The position of each node by its name."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def span(self, block: Block) -> set[int]:
        """Return the positions of a block's nodes."""
        return self.between(self.place[block.entry], self.place[block.exit])

    def region(self, path: tuple[str, ...]) -> set[int]:
        """Return the nodes inside a module."""
        return set(self._regions.get(path, ()))

    @cached_property
    def _regions(self) -> dict[tuple[str, ...], list[int]]:
        regions: dict[tuple[str, ...], list[int]] = {}
        for position, path in enumerate(self.paths):
            for length in range(len(path) + 1):
                regions.setdefault(path[:length], []).append(position)
        return regions

    def ends(self, nodes: set[int]) -> tuple[int, int] | None:
        """Return (entry, exit) if one value enters these nodes and one leaves; else ``None``."""
        entering = {s for n in nodes for s in self.feeds[n] if s not in nodes}
        leaving = {
            n for n in nodes if self.nodes[n].name in self.returned or any(u not in nodes for u in self.users[n])
        }
        if len(leaving) != 1 or not entering:
            return None
        if len(entering) == 1:
            return entering.pop(), leaving.pop()
        joins = {u for s in entering for u in self.users[s] if u in nodes}
        if len(joins) == 1 and operator_name(self.nodes[min(joins)]) in {"cat", "concat"}:
            return joins.pop(), leaving.pop()  # a dense layer: it begins with a concatenation
        return None

    def weighted(self, nodes: Iterable[int]) -> int:
        """Count the convolutions and linear layers among nodes."""
        return sum(kind_of(self.nodes[n]) in ("conv", "linear", "matmul") for n in nodes)

    def convolutions(self, nodes: Iterable[int]) -> int:
        """Count the convolutions among nodes."""
        return sum(kind_of(self.nodes[n]) == "conv" for n in nodes)

    def layer_names(self, nodes: Iterable[int]) -> tuple[str, ...]:
        """Return the layers among nodes, in execution order."""
        names = {self.nodes[n].name for n in nodes}
        return tuple(layer.name for layer in self.layers if layer.node in names)

    def size(self, position: int, rank: int) -> Shape | None:
        """Return the spatial size of a value; ``None`` if it is no map of the input's rank."""
        shape = shape_of(self.nodes[position])
        if len(shape) != rank or rank < 3:
            return None
        return shape[1:-1] if self._channels_last(position) else shape[2:]

    def width(self, position: int) -> int:
        """Return the number of channels of a value; 0 if it has none."""
        shape = shape_of(self.nodes[position])
        axis = -1 if self._channels_last(position) else 1
        return shape[axis] if len(shape) > 1 else 0

    def flattened_map(self, layer: Layer) -> Shape:
        """Return the shape (n, channels, *spatial) of the map that a layer's input was flattened from.

        Between flattening and layer there may be dropout and activations, which treat all positions alike. The channels
        must vary slowest, as ``flatten(1)`` of a map (n, c, h, w) leaves them.

        Returns:
            The shape; empty where the layer reads no flattened map, or the network's input itself.
        """
        feeds = self.feeds[self.place[layer.node]]
        position = feeds[0] if len(feeds) == 1 else -1
        rows = shape_of(self.nodes[position]) if position >= 0 else ()
        if len(rows) != 2:
            return ()
        while position >= 0 and shape_of(self.nodes[position]) == rows:
            node, feeds = self.nodes[position], self.feeds[position]  # back through what mixes no elements
            light = operator_name(node) in _ROWS_KEPT or kind_of(node) == "activation"
            position = feeds[0] if light and len(feeds) == 1 else -1
        found = shape_of(self.nodes[position]) if position >= 0 else ()
        if len(found) < 3 or found[0] != rows[0] or not self.feeds[position]:
            return ()
        value = self.channels.follower.values.get(self.nodes[position].name)
        planes = value.planes if isinstance(value, Value) else ()
        return found if [plane.axes for plane in planes] == [(1,)] else ()

    def _channels_last(self, position: int) -> bool:
        node = self.nodes[position]
        value = self.channels.follower.values.get(node.name)
        if value is None or isinstance(value, list):
            return False
        # A frozen value may vary along rows and columns alike: that is no channel axis in the last place.
        before = (value.plane_at(axis) for axis in range(1, value.ndim - 1))
        return all(plane is None for plane in before) and value.plane_at(value.ndim - 1) is not None

    def common_path(self, nodes: Iterable[int]) -> tuple[str, ...]:
        """Return the smallest module that holds all nodes."""
        levels = zip(*(self.paths[n] for n in nodes), strict=False)
        return tuple(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))
