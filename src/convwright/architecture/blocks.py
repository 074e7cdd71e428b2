"""Blocks, found on the operator graph and then named after modules.

A *residual block* is found by dominance: the immediate dominator of an addition is the last value that every path
to it passes, so it is where shortcut and branch part. A *plain unit* is found on the module tree: one of several
modules of a kind that maps one tensor to one tensor.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from convwright.architecture.capture.graph import describe, operator_name, shape_of
from convwright.architecture.channels import numbered
from convwright.architecture.flow import Block, Flow
from convwright.architecture.layers import kind_of

if TYPE_CHECKING:
    from convwright.architecture.architecture import Architecture

_ADDITIONS = frozenset({"add", "__add__", "__iadd__"})
_NOTHING = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias",
                      "detach", "to", "_to_copy", "_assert_tensor_metadata"})  # fmt: skip
_PASSING = _NOTHING | {"batch_norm"}
_MOVES = _NOTHING | {"pad", "constant_pad_nd", "slice", "cat", "concat", "concatenate"}
_LINEAR_KINDS = frozenset({"conv", "linear", "norm", "pool"})
_PASSING_KINDS = frozenset({"activation", "elementwise", "other"})
_LIGHT_KINDS = frozenset({"norm", "activation", "elementwise"})
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(flow: Flow) -> tuple[Block, ...]:
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
    return tuple(_finish(flow, draft) for draft in drafts_of(flow))


def block_of_module(flow: Flow, name: str) -> Block | None:
    """Return a module as a block, if it maps one tensor to one and computes something."""
    path = tuple(name.split("."))
    region = flow.region(path) if name in flow.called and name else set()
    ends = flow.ends(region) if flow.weighted(region) else None
    if ends is None:
        return None
    inner = [d for d in drafts_of(flow) if d.kind == "residual" and d.nodes <= region]
    rest = region.difference(*(d.nodes for d in inner))
    kind = "residual" if inner and all(d.identity for d in inner) and not flow.weighted(rest) else "plain"
    return _finish(flow, BlockDraft(name, kind, frozenset(region), *ends, modules=(name,)))


def outermost(flow: Flow, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that lie in no other one of these, in their order."""
    spans = {block.name: flow.span(block) for block in blocks}
    return [b for b in blocks if not any(spans[b.name] < spans[other.name] for other in blocks)]


def additions(flow: Flow, block: Block) -> list[tuple[fx.Node, list[fx.Node]]] | None:
    """Return what is added to the value that passes through a block, at each addition on its way.

    Returns:
        Per addition, from the last to the first: the operand by which the value passes (unchanged, or through a
        batch norm, as in re-parametrised blocks), and the other operands; ``None`` if the value does not pass
        through additions and operators without weights alone.
    """
    found = []
    position, entry = flow.place[block.exit], flow.place[block.entry]
    while position != entry:
        if _is_addition(flow, position):
            before = flow.dominator[position]
            leaves, _ = _operands(flow, position)
            ways = {leaf: {operator_name(flow.nodes[n]) for n in flow.between(before, leaf)} for leaf in leaves}
            passing = next((n for names in (_NOTHING, _PASSING) for n in leaves if ways[n] <= names), -1)
            if passing < 0 or before < entry:
                return None
            found.append((flow.nodes[passing], [flow.nodes[n] for n in leaves if n != passing]))
            position = before
        elif len(flow.feeds[position]) == 1 and kind_of(flow.nodes[position]) in _PASSING_KINDS:
            position = flow.feeds[position][0]
        else:
            return None
    return found


def branch_values(flow: Flow, block: Block) -> tuple[fx.Node, ...]:
    """Return what a residual block's addition adds to the shortcut: the last value of each branch.

    Returns:
        In execution order; empty for a plain unit.
    """
    if not block.join:
        return ()
    join = flow.place[block.join]
    leaves, _ = _operands(flow, join)
    entry = flow.dominator[join]
    ordered = sorted(leaves, key=lambda leaf: _weight(flow, flow.between(entry, leaf)))
    short = next((leaf for leaf in ordered if _is_linear(flow, flow.between(entry, leaf))), -1)
    return tuple(flow.nodes[leaf] for leaf in sorted(leaves) if leaf != short)


@dataclass(frozen=True)
class BlockDraft:
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
    modules: tuple[str, ...] = ()


def drafts_of(flow: Flow) -> list[BlockDraft]:
    """Find blocks as positions of the flow, in execution order."""
    residual = _residual_blocks(flow)
    plain = _Plain(flow, residual).visit("")
    ordered = sorted([*residual, *plain], key=lambda draft: (min(draft.nodes), -max(draft.nodes)))
    names = numbered(draft.name for draft in ordered)
    return [replace(draft, name=name) for draft, name in zip(ordered, names, strict=True)]


def _finish(flow: Flow, draft: BlockDraft) -> Block:
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
        modules=draft.modules,
    )


# ------------------------------------------------------------------ residual blocks


def _residual_blocks(flow: Flow) -> list[BlockDraft]:
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


def _is_addition(flow: Flow, position: int) -> bool:
    return (
        operator_name(flow.nodes[position]) in _ADDITIONS
        and len(flow.feeds[position]) == 2
        and flow.dominator[position] >= 0
    )


def _operands(flow: Flow, position: int) -> tuple[list[int], set[int]]:
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


def _residual(flow: Flow, join: int, leaves: Sequence[int]) -> BlockDraft | None:
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
    return BlockDraft("", "residual", frozenset(whole), entry, join, branch, frozenset(short), join, identity)


def _weight(flow: Flow, route: set[int]) -> tuple[int, int]:
    return flow.weighted(route), len(route)


def _is_linear(flow: Flow, route: Iterable[int]) -> bool:
    return all(
        operator_name(node) in _MOVES or kind_of(node) in _LINEAR_KINDS for node in (flow.nodes[n] for n in route)
    )


def _named(flow: Flow, draft: BlockDraft, joins: set[int]) -> BlockDraft:
    """Name a residual block by its module; a module that holds nothing else sets its ends too."""
    path = flow.common_path([*draft.branch, draft.join])
    region = flow.region(path)
    if len((joins & region) - draft.nodes) > 0 or not path:
        own = flow.common_path(draft.branch)
        return replace(draft, name=".".join(own or path) or flow.layer_names([draft.join])[0])
    ends = flow.ends(region)
    if ends is not None and not flow.weighted(region - draft.nodes):
        whole = (".".join(path),) if ".".join(path) in flow.called else ()
        draft = replace(draft, nodes=frozenset(region), entry=ends[0], exit=ends[1], modules=whole)
    return replace(draft, name=".".join(path))


# ------------------------------------------------------------------ plain units

Run = list[str]


class _Plain:
    """Search of the module tree for repeated units outside residual blocks."""

    def __init__(self, flow: Flow, residual: Sequence[BlockDraft]) -> None:
        self.flow = flow
        self.covered: set[int] = set().union(*(draft.nodes for draft in residual))
        self.modules = dict(flow.model.named_modules())
        self.kinds = Counter(self._kind(name) for name in self.modules)

    def visit(self, name: str) -> list[BlockDraft]:
        """Return the units within a module, from the outside in: nothing inside a unit is a unit."""
        found = [draft for run in self._runs(name) if (draft := self._plain(run)) is not None]
        for path in self._children(name):
            region = self._region([path])
            if not region or region <= self.covered:
                continue
            draft = self._plain([path]) if self._is_unit(path, region) else None
            found += self.visit(path) if draft is None else [draft]
        return found

    def _plain(self, members: Run) -> BlockDraft | None:
        region = self._region(members)
        ends = None if region & self.covered else self.flow.ends(region)
        if ends is None:
            return None
        whole = tuple(members) if all(member in self.flow.called for member in members) else ()
        return BlockDraft(members[0], "plain", frozenset(region), *ends, modules=whole)

    def _region(self, members: Run) -> set[int]:
        return set().union(*(self.flow.region(tuple(m.split("."))) for m in members))

    def _children(self, name: str) -> list[str]:
        paths = (f"{name}.{child}" if name else child for child, _ in self.modules[name].named_children())
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
        return (type(module), *(map(self._kind, self._children(name)) if type(module) in _CONTAINERS else ()))

    def _is_row(self, name: str) -> bool:
        """Whether a container only lines up units of one kind: then those are the units."""
        if not isinstance(self.modules[name], _CONTAINERS):
            return False
        runs = self._runs(name)
        if runs:
            kinds = {(_convolution_kind(self.modules[m]), *(type(self.modules[n]) for n in more)) for m, *more in runs}
            return len(kinds) == 1
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


def _is_convolution(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 2 and hasattr(module, "stride")


def _convolution_kind(module: nn.Module) -> tuple[object, ...]:
    """Class, kernel and whether it is grouped: a convolution with its widths left aside."""
    weight, groups = module.weight, getattr(module, "groups", 1)
    assert isinstance(weight, Tensor)
    return (type(module), tuple(weight.shape[2:]), groups != 1)


# ------------------------------------------------------------------ where branches end

# Operators that may stand behind the module: a factor per image, zero included, passes through them unchanged.
_SCALED_ALIKE = frozenset({
    "relu", "leaky_relu", "dropout", "feature_dropout", "clone", "contiguous", "alias", "mul", "neg", "permute",
    "transpose", "view", "reshape", "flatten", "unflatten", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d",
})  # fmt: skip


@dataclass(frozen=True)
class BranchEnd:
    """The end of one branch of a residual block.

    Attributes:
        block: the block's name.
        module: the innermost module whose output is the branch's value, up to operators that a factor per image
            passes through; empty if there is none.
        reason: why there is none; else empty.
    """

    block: str
    module: str
    reason: str = ""


def branch_ends(architecture: Architecture) -> tuple[BranchEnd, ...]:
    """Return the ends of all residual branches, in execution order of their blocks."""
    flow = architecture.flow
    residual = [block for block in architecture.blocks if block.join]
    return tuple(_end(flow, block, flow.position[node]) for block in residual for node in branch_values(flow, block))


def _end(flow: Flow, block: Block, position: int) -> BranchEnd:
    join, last = flow.place[block.join], position
    rows = shape_of(flow.nodes[join])[:1]
    while True:
        module = _giver(flow, position, join)
        if module and shape_of(flow.nodes[position])[:1] == rows:
            return BranchEnd(block.name, module)
        feeds = flow.feeds[position]
        passes = operator_name(flow.nodes[position]) in _SCALED_ALIKE and len(feeds) == 1
        if not passes or len(flow.users[position]) != 1 or flow.nodes[feeds[0]].name == block.entry:
            reason = f"the end of its branch is no module's output ({describe(flow.nodes[last])})"
            return BranchEnd(block.name, "", reason)
        position = feeds[0]


def _giver(flow: Flow, position: int, join: int) -> str:
    """Return the innermost module, called once, that gives a node's value and nothing else, to one place."""
    if len(flow.users[position]) != 1:
        return ""
    path = flow.paths[position]
    for length in range(len(path), 0, -1):
        region = flow.region(path[:length])
        name = ".".join(path[:length])
        leaving = {n for n in region if any(user not in region for user in flow.users[n])}
        if name in flow.called and leaving == {position} and join not in region:
            return name
    return ""
