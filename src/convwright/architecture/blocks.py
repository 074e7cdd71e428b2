"""Blocks and stages, found on the operator graph and then named after modules.

A *residual block* is found by dominance: the immediate dominator of an addition is the last value that every path
to it passes, so it is where shortcut and branch part. A *plain unit* is found on the module tree: one of several
modules of a kind that maps one tensor to one tensor. A *stage* is a run of layers at one spatial size.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from convwright.architecture.capture import (
    module_path,
    operator_name,
    shape_of,
)
from convwright.architecture.layers import kind_of

if TYPE_CHECKING:
    from convwright.architecture.architecture import Architecture

Shape = tuple[int, ...]

_ADDITIONS = frozenset({"add", "__add__", "__iadd__"})
_NOTHING = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias",
                      "detach", "to", "_to_copy", "_assert_tensor_metadata"})  # fmt: skip
_MOVES = _NOTHING | {"pad", "constant_pad_nd", "slice", "cat", "concat", "concatenate"}
_LINEAR_KINDS = frozenset({"conv", "linear", "norm", "pool"})
_LIGHT_KINDS = frozenset({"norm", "activation", "elementwise"})
_REDUCTIONS = frozenset({"mean", "sum", "amax", "max", "var", "std", "logsumexp"}) | {
    f"adaptive_{what}_pool{n}d" for what in ("avg", "max") for n in (1, 2, 3)
}
_REARRANGING = frozenset({"view", "reshape", "_unsafe_view", "permute", "transpose", "flatten",
                          "unflatten", "unsqueeze", "squeeze", "movedim"})  # fmt: skip
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the input's shape, so that the block could be skipped."""
        return self.input_shape == self.output_shape


@dataclass(frozen=True)
class Stage:
    """A run of layers at one spatial size.

    Attributes:
        name: ``stage1``, ``stage2``, ... from input to output.
        size: spatial size of its layers' outputs, e.g. (56, 56).
        layers: names of its layers, in execution order.
        blocks: names of the blocks whose output lies in it.
    """

    name: str
    size: tuple[int, ...]
    layers: tuple[str, ...]
    blocks: tuple[str, ...]


def find_blocks(architecture: Architecture) -> tuple[Block, ...]:
    """Find residual blocks and repeated plain units, in execution order.

    * Residual: an addition whose one operand is the entry itself (``identity``) or a linear projection of it
      (convolution, norm, pooling, padding, slicing) with fewer weighted layers than the branch. Several
      branches added in one chain are one block. Named by the smallest module that holds branch and addition.
    * Plain: outside residual blocks, a module with convolutions that maps one tensor (or one concatenation) to
      one tensor and has a twin: the same class elsewhere, or for a bare ``Sequential`` a sibling of the same
      structure. In a flat ``Sequential`` each run "convolution, then what follows up to the next convolution or
      pooling" is a unit. What lies inside a unit or a residual block is not listed again.

    Returns:
        The blocks; empty if the network has none. Odd graphs give fewer blocks, never an error.
    """
    flow = _Flow(architecture)
    return tuple(_finish(flow, draft) for draft in _drafts(flow))


# ------------------------------------------------------------------ the flow of values


class _Flow:
    """The graph without parameters: positions of nodes, who feeds whom, and immediate dominators."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.nodes: list[fx.Node] = []
        self.position: dict[fx.Node, int] = {}
        self.feeds: list[list[int]] = []
        self.dominator: list[int] = []
        self._depth: list[int] = []
        inputs = set(architecture.capture.inputs)
        for node in architecture.capture.graph.nodes:
            sources = [self.position[n] for n in node.all_input_nodes if n in self.position]
            if node.name in inputs or (node.op == "call_function" and sources):
                self._append(node, sources)

    def _append(self, node: fx.Node, sources: list[int]) -> None:
        self.position[node] = len(self.nodes)
        self.nodes.append(node)
        self.feeds.append(sources)
        meet = sources[0] if sources else -1
        for source in sources[1:]:
            meet = self._meet(meet, source)
        self.dominator.append(meet)
        self._depth.append(self._depth[meet] + 1 if meet >= 0 else 0)

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
        return frozenset(self.architecture.capture.outputs)

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
        return tuple(layer.name for layer in self.architecture.layers if layer.node in names)

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

    def _channels_last(self, position: int) -> bool:
        node = self.nodes[position]
        value = self.architecture.channels.follower.values.get(node.name)
        if value is None or isinstance(value, list):
            return False
        return value.plane_at(1) is None and value.plane_at(value.ndim - 1) is not None

    def common_path(self, nodes: Iterable[int]) -> tuple[str, ...]:
        """Return the smallest module that holds all nodes."""
        paths = [self.paths[n] for n in nodes]
        if not paths:
            return ()
        low, high = min(paths), max(paths)
        length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
        return low[: min(len(low), len(high)) if length is None else length]


@dataclass(frozen=True)
class _Draft:
    """A block in positions of the flow, before it is finished."""

    name: str
    kind: str
    nodes: frozenset[int]
    entry: int
    exit: int
    branch: frozenset[int] = frozenset()
    shortcut: frozenset[int] = frozenset()
    join: int = -1
    identity: bool = False


def _drafts(flow: _Flow) -> list[_Draft]:
    residual = _residual_blocks(flow)
    plain = _Plain(flow, residual).find()
    ordered = sorted([*residual, *plain], key=lambda draft: (min(draft.nodes), -max(draft.nodes)))
    return _uniquely_named(ordered)


def _finish(flow: _Flow, draft: _Draft) -> Block:
    return Block(
        name=draft.name,
        kind=draft.kind,
        layers=flow.layer_names(draft.nodes),
        input_shape=shape_of(flow.nodes[draft.entry]),
        output_shape=shape_of(flow.nodes[draft.exit]),
        entry=flow.nodes[draft.entry].name,
        exit=flow.nodes[draft.exit].name,
        branch=flow.layer_names(draft.branch),
        shortcut=flow.layer_names(draft.shortcut),
        join=flow.nodes[draft.join].name if draft.join >= 0 else "",
        identity=draft.identity,
    )


def _uniquely_named(drafts: list[_Draft]) -> list[_Draft]:
    seen: Counter[str] = Counter()
    named = []
    for draft in drafts:
        seen[draft.name] += 1
        suffix = f"#{seen[draft.name]}" if seen[draft.name] > 1 else ""
        named.append(replace(draft, name=draft.name + suffix))
    return named


# ------------------------------------------------------------------ residual blocks


def _residual_blocks(flow: _Flow) -> list[_Draft]:
    absorbed: set[int] = set()
    drafts = []
    for position in reversed(range(len(flow.nodes))):  # outer additions first: they absorb inner ones
        if position in absorbed or not _is_addition(flow, position):
            continue
        leaves, inner = _operands(flow, position)
        draft = _residual(flow, position, leaves)
        if draft is not None:
            absorbed |= inner
            drafts.append(draft)
    joins = {draft.join for draft in drafts}
    return [_named(flow, draft, joins) for draft in reversed(drafts)]


def _is_addition(flow: _Flow, position: int) -> bool:
    return (
        operator_name(flow.nodes[position]) in _ADDITIONS
        and len(flow.feeds[position]) == 2
        and flow.dominator[position] >= 0
    )


def _operands(flow: _Flow, position: int) -> tuple[list[int], set[int]]:
    """Return the operands of a chain of additions, and the inner additions."""
    leaves, inner, waiting = [], set(), list(flow.feeds[position])
    while waiting:
        node = waiting.pop()
        same_entry = flow.dominator[node] == flow.dominator[position]
        if same_entry and _is_addition(flow, node) and len(flow.users[node]) == 1:
            inner.add(node)
            waiting.extend(flow.feeds[node])
        else:
            leaves.append(node)
    return leaves, inner


def _residual(flow: _Flow, join: int, leaves: Sequence[int]) -> _Draft | None:
    entry = flow.dominator[join]
    routes = sorted((flow.between(entry, leaf) for leaf in leaves), key=lambda r: _weight(flow, r))
    short = next((route for route in routes if _is_linear(flow, route)), None)
    if short is None:
        return None
    whole = flow.between(entry, join)
    branch = frozenset().union(*(r for r in routes if r is not short)) - short
    if flow.weighted(branch) <= flow.weighted(short):
        return None
    identity = all(operator_name(flow.nodes[n]) in _NOTHING for n in short)
    return _Draft("", "residual", frozenset(whole), entry, join, branch, frozenset(short), join, identity)


def _weight(flow: _Flow, route: set[int]) -> tuple[int, int]:
    return flow.weighted(route), len(route)


def _is_linear(flow: _Flow, route: Iterable[int]) -> bool:
    return all(
        operator_name(node) in _MOVES or kind_of(node) in _LINEAR_KINDS for node in (flow.nodes[n] for n in route)
    )


def _named(flow: _Flow, draft: _Draft, joins: set[int]) -> _Draft:
    """Name a residual block by its module; a module that holds nothing else sets its ends too."""
    path = flow.common_path([*draft.branch, draft.join])
    region = flow.region(path)
    if len((joins & region) - draft.nodes) > 0 or not path:
        own = flow.common_path(draft.branch)
        return replace(draft, name=".".join(own or path) or flow.layer_names([draft.join])[0])
    ends = flow.ends(region)
    if ends is not None and not flow.weighted(region - draft.nodes):
        draft = replace(draft, nodes=frozenset(region), entry=ends[0], exit=ends[1])
    return replace(draft, name=".".join(path))


# ------------------------------------------------------------------ plain units

Run = list[str]


class _Plain:
    """Search of the module tree for repeated units outside residual blocks."""

    def __init__(self, flow: _Flow, residual: Sequence[_Draft]) -> None:
        self.flow = flow
        self.covered: set[int] = set().union(*(draft.nodes for draft in residual))
        self.modules = dict(flow.architecture.model.named_modules())
        self.kinds = Counter(self._kind(name) for name in self.modules)

    def find(self) -> list[_Draft]:
        """Return the units, from the outside in: nothing inside a unit is a unit."""
        return self._visit("")

    def _visit(self, name: str) -> list[_Draft]:
        found = [draft for run in self._runs(name) if (draft := self._plain(run)) is not None]
        for path in self._children(name):
            region = self._region([path])
            if not region or region <= self.covered:
                continue
            draft = self._plain([path]) if self._is_unit(path, region) else None
            found += self._visit(path) if draft is None else [draft]
        return found

    def _plain(self, members: Run) -> _Draft | None:
        region = self._region(members)
        ends = None if region & self.covered else self.flow.ends(region)
        return None if ends is None else _Draft(members[0], "plain", frozenset(region), *ends)

    def _region(self, members: Run) -> set[int]:
        return set().union(*(self.flow.region(tuple(m.split("."))) for m in members))

    def _children(self, name: str) -> list[str]:
        paths = (_join(name, child) for child, _ in self.modules[name].named_children())
        return [path for path in paths if path in self.modules]  # a shared module has one name

    def _is_unit(self, name: str, region: set[int]) -> bool:
        """Whether a module has a twin, computes, and is no mere row of units.

        For a module of one convolution the twin must stand next to it: a stem and a head of one class
        are no repetition.
        """
        convolutions = self.flow.convolutions(region)
        if not convolutions or not self._children(name) or self.kinds[self._kind(name)] < 2:
            return False
        return not self._is_row(name) and (convolutions > 1 or self._beside_twin(name))

    def _beside_twin(self, name: str) -> bool:
        parent = name.rpartition(".")[0]
        row = self._children(parent) if isinstance(self.modules[parent], _CONTAINERS) else []
        pairs = itertools.pairwise(row)
        return any(name in pair and self._kind(pair[0]) == self._kind(pair[1]) for pair in pairs)

    def _kind(self, name: str) -> tuple[object, ...]:
        """What makes two modules twins: the class; for a bare container its structure."""
        module = self.modules[name]
        return (type(module), *(map(self._kind, self._children(name)) if _is_bare(module) else ()))

    def _is_row(self, name: str) -> bool:
        """Whether a container only lines up units of one kind: then those are the units."""
        if not isinstance(self.modules[name], _CONTAINERS):
            return False
        runs = self._runs(name)
        if runs:
            return len({self._run_kind(run) for run in runs}) == 1
        units = [c for c in self._children(name) if self._convolutions_in(c)]
        kinds = {self._unit_kind(unit) for unit in units}
        return len(kinds) == 1 and all(self._children(unit) for unit in units)

    def _runs(self, name: str) -> list[Run]:
        """Return the runs "bare convolution and what follows it" of a ``Sequential``."""
        if not isinstance(self.modules[name], nn.Sequential):
            return []
        runs: list[Run] = []
        open_run = False
        for child in self._children(name):
            if _is_convolution(self.modules[child]) and not self._children(child):
                runs.append([child])
                open_run = True
            elif open_run and self._is_light(child):
                runs[-1].append(child)
            else:
                open_run = False
        return runs if len(runs) > 1 else []

    def _is_light(self, name: str) -> bool:
        """Whether a module only normalises, activates or drops."""
        nodes = [self.flow.nodes[n] for n in self._region([name])]
        return all(kind_of(n) in _LIGHT_KINDS or operator_name(n) in _NOTHING for n in nodes)

    def _convolutions_in(self, name: str) -> list[nn.Module]:
        return [m for m in self.modules[name].modules() if _is_convolution(m)]

    def _unit_kind(self, name: str) -> tuple[object, ...]:
        """The class; where it holds one convolution that one's kind too (depthwise, pointwise)."""
        inside = self._convolutions_in(name)
        return (type(self.modules[name]), _convolution_kind(inside[0]) if len(inside) == 1 else ())

    def _run_kind(self, run: Run) -> tuple[object, ...]:
        rest = tuple(type(self.modules[m]) for m in run[1:])
        return (_convolution_kind(self.modules[run[0]]), rest)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def _is_bare(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS


def _is_convolution(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 2 and hasattr(module, "stride")


def _convolution_kind(module: nn.Module) -> tuple[object, ...]:
    """Class, kernel and whether it is grouped: a convolution with its widths left aside."""
    weight, groups = module.weight, getattr(module, "groups", 1)
    assert isinstance(weight, Tensor)
    return (type(module), tuple(weight.shape[2:]), groups != 1)


# ------------------------------------------------------------------ stages


def find_stages(architecture: Architecture, split_by_width: bool = False) -> tuple[Stage, ...]:
    """Group the layers into runs at one spatial size, from input to output.

    The size of a layer is the spatial size of its output. A layer belongs to the stage of what it reads if the
    sizes agree and to the next stage otherwise, so the execution order of parallel branches does not matter.

    * Side branches stay with the map they act on: inside a block every layer counts with the size of the
      block's input or output; values pooled to one position, flattened or split into heads that later return to
      a map (squeeze-and-excitation, attention) count with the size of what they read.
    * The head, i.e. what follows the last global pooling or flattening, has no size and belongs to **no**
      stage.

    Args:
        architecture: the network.
        split_by_width: also split where the width of the main path, the channels that leave the blocks,
            changes (GhostNet's six groups). Layers between blocks stay with the block before them.

    Returns:
        The stages.
    """
    flow = _Flow(architecture)
    drafts = _drafts(flow)
    stage_of, sizes = _Sizes(flow, drafts).stages()
    parts = _width_parts(flow, drafts, stage_of) if split_by_width else [0] * len(stage_of)
    members: dict[tuple[int, int], set[int]] = {}
    for n, (stage, part) in enumerate(zip(stage_of, parts, strict=True)):
        if stage >= 0:
            members.setdefault((stage, part), set()).add(n)
    found: list[Stage] = []
    for key in sorted(members):
        layers = flow.layer_names(members[key])
        blocks = tuple(draft.name for draft in drafts if draft.exit in members[key])
        if layers:
            found.append(Stage(f"stage{len(found) + 1}", sizes[key[0]], layers, blocks))
    return tuple(found)


def _width_parts(flow: _Flow, drafts: Sequence[_Draft], stage_of: Sequence[int]) -> list[int]:
    """Number, within each stage, the runs of blocks of one width, and place every node in one."""
    outer = [d for d in drafts if not any(d.nodes < other.nodes for other in drafts)]
    begins = {min(draft.nodes): draft for draft in outer}
    current: dict[int, tuple[int, int]] = {}  # stage -> (part, width)
    parts = []
    for n, stage in enumerate(stage_of):
        if n in begins:
            home = stage_of[begins[n].exit]
            width = flow.width(begins[n].exit)
            part, before = current.get(home, (0, width))
            current[home] = (part + (width != before), width)
        parts.append(current.get(stage, (0, 0))[0])
    return parts


class _Sizes:
    """Spatial sizes of all values, and the stages they make."""

    def __init__(self, flow: _Flow, drafts: Sequence[_Draft]) -> None:
        self.flow = flow
        self.rank = next((len(shape_of(n)) for n in flow.nodes if n.op == "placeholder"), 4)
        self.drafts = drafts
        self.block: dict[int, _Draft] = {}
        for draft in sorted(drafts, key=lambda d: -len(d.nodes)):  # inner blocks overwrite
            self.block.update(dict.fromkeys(draft.nodes, draft))

    def stages(self) -> tuple[list[int], list[Shape]]:
        """Return the stage of each node (-1: the head) and the size of each stage."""
        own = self._own_sizes()
        returns = self._returning(own)
        stage_of: list[int] = []
        sizes: list[Shape] = []
        for n, sources in enumerate(self.flow.feeds):
            before = max((stage_of[s] for s in sources), default=-1)
            size = own[n]
            if size is None:
                stage_of.append(before if returns[n] else -1)
            elif before >= 0 and sizes[before] == size:
                stage_of.append(before)
            else:
                stage_of.append(_next_stage(sizes, before, size))
        return stage_of, sizes

    def _own_sizes(self) -> list[Shape | None]:
        """Return the size of each value; ``None`` for side branches and the head."""
        own: list[Shape | None] = []
        for n, sources in enumerate(self.flow.feeds):
            known = not sources or any(own[s] is not None for s in sources)
            own.append(self._own_size(n, known))
        for draft in self.drafts:
            self._drop_returning(draft, own)
        return own

    def _own_size(self, n: int, known: bool) -> Shape | None:
        """Return the size of one value.

        Args:
            n: the node.
            known: whether something that it reads has a size. If not, only an operator that makes maps
                gives it one again: four axes alone may be heads and tokens.
        """
        size = self._allowed(n)
        point = size is not None and all(s == 1 for s in size)
        if point and (not known or self._pools(n)):
            return None
        return size if known or _makes_map(self.flow.nodes[n]) else None

    def _allowed(self, n: int) -> Shape | None:
        """Return the size of a value if it is a map, of a size that its block has at its ends."""
        if operator_name(self.flow.nodes[n]) in _REARRANGING:
            return None
        size = self.flow.size(n, self.rank)
        draft = self.block.get(n)
        if draft is None or n == draft.exit:
            return size
        ends = self._ends(draft)
        return size if None in ends or size in ends else None

    def _ends(self, draft: _Draft) -> tuple[Shape | None, Shape | None]:
        return self.flow.size(draft.entry, self.rank), self.flow.size(draft.exit, self.rank)

    def _drop_returning(self, draft: _Draft, own: list[Shape | None]) -> None:
        """Inside a block that changes the size, a detour to the new size and back is a side branch."""
        before, after = self._ends(draft)
        if before == after:
            return
        back: set[int] = set()
        for n in sorted(draft.nodes, reverse=True):
            if any(u in back or (u in draft.nodes and own[u] == before) for u in self.flow.users[n]):
                back.add(n)
                own[n] = None if own[n] == after else own[n]

    def _pools(self, n: int) -> bool:
        """Whether a node reduces a whole map to one position."""
        node = self.flow.nodes[n]
        name = operator_name(node)
        if name in _REDUCTIONS:
            return True
        before = self.flow.size(self.flow.feeds[n][0], self.rank) if self.flow.feeds[n] else None
        return name.startswith("avg_pool") and before is not None and max(before) > 1

    def _returning(self, own: Sequence[Shape | None]) -> list[bool]:
        """Return which values reach a map again."""
        returns = [False] * len(own)
        for n in reversed(range(len(own))):
            returns[n] = any(own[u] is not None or returns[u] for u in self.flow.users[n])
        return returns


def _makes_map(node: fx.Node) -> bool:
    name = operator_name(node)
    spatial = name.startswith(("upsample", "_upsample", "pixel_", "grid_sampler", "avg_pool"))
    return kind_of(node) == "conv" or spatial or name.startswith(("max_pool", "adaptive_"))


def _next_stage(sizes: list[Shape], before: int, size: Shape) -> int:
    """Return the first stage behind ``before`` that has this size, a new one if there is none."""
    for stage in range(before + 1, len(sizes)):
        if sizes[stage] == size:
            return stage
    sizes.append(size)
    return len(sizes) - 1
