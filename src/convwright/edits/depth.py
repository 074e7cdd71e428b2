"""Depth: remove blocks, and add copies of blocks that begin as the identity."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx, nn

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import block_of_module
from convwright.architecture.capture.graph import LEAVES, describe, module_class, module_path, operator_name, shape_of
from convwright.edits.edit import Edit, Options, Outcome, carries_out, check_distinct, one_sample, refusal
from convwright.edits.equivalence import measure
from convwright.edits.identity import identity_start
from convwright.edits.structure import (
    Act,
    Structure,
    Succession,
    free_names,
    insert_after,
    macs_of_layers,
    put,
    rerouted,
)
from convwright.edits.surgery import check_room
from convwright.errors import EditError
from convwright.layers.passing import Chain, Skip, Zero

_MOST_COPIES = 1000


@dataclass(frozen=True)
class RemoveBlock(Edit):
    """Take a block out: its input goes on unchanged.

    A residual block is replaced by its shortcut and whatever follows the addition; a plain unit whose output has
    its input's shape is skipped. The names of all other modules stay.

    Attributes:
        target: the block, by the name in ``Architecture.blocks`` or of its module.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> new = arch.apply(cw.RemoveBlock("layer2.1"))
        >>> new.changes[0].exact, len(arch.blocks) - len(new.blocks)
        (True, 1)
    """

    kind: ClassVar[str] = "remove_block"

    target: str


@dataclass(frozen=True)
class AddBlock(Edit):
    """Put copies of a block behind it that begin as the identity, so that the function stays.

    In a copy of a residual block the last scale of the branch is zero (Goyal et al. 2017; Net2Net's deeper
    operator, Chen et al. 2016, is the plain case); in a copy of a plain unit convolutions are Dirac and norms
    neutral, which is exact where its activation leaves what enters as it is (ReLU after ReLU).

    Attributes:
        target: the block, by the name in ``Architecture.blocks`` or of its module. Its output must have its
            input's shape.
        copies: how many copies are put behind it.
        approximate: the copies change the function a little; set when the edit is applied.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> arch.apply(cw.AddBlock("layer2.1", copies=2)).changes[0].exact
        True
    """

    kind: ClassVar[str] = "add_block"

    target: str
    copies: int = 1
    approximate: bool = False


# ------------------------------------------------------------------ removing


@dataclass(frozen=True, eq=False)
class _Removal:
    """How a block goes: what is done, the value that goes on in its place, and the layers that vanish."""

    act: Act
    instead: tuple[str, str]
    layers: tuple[str, ...]
    silenced: bool = False


@carries_out(RemoveBlock)
def carry_out_removals(architecture: Architecture, edits: Sequence[RemoveBlock], options: Options) -> Outcome:
    """Remove blocks from a copy of the model."""
    _check_distinct(edits)
    removals = [_removal(architecture, edit) for edit in edits]
    instead = dict(removal.instead for removal in removals)
    surgery = Structure(
        tuple(removal.act for removal in removals), lambda model: rerouted(architecture, model, instead)
    )
    saved = [-macs_of_layers(architecture, removal.layers) for removal in removals]
    difference = measure(architecture, surgery) if options.verify else None
    if difference is not None and not difference.exact and any(removal.silenced for removal in removals):
        names = ", ".join(e.target for e, r in zip(edits, removals, strict=True) if r.silenced)
        raise EditError(f"{names} cannot be removed: the branch does not vanish with its modules; the code adds more.")
    return surgery.outcome(architecture, edits, difference, saved)


def why_not_removable(architecture: Architecture, block: Block) -> str | None:
    """Return why a block cannot be removed, without doing anything; ``None`` if it can."""
    return refusal(_removal, architecture, RemoveBlock(block.name))


def needs_measuring(architecture: Architecture, block: Block) -> bool:
    """Whether only a measurement shows that a block's branch vanishes with its modules; the block is removable."""
    return _removal(architecture, RemoveBlock(block.name)).silenced


def _check_distinct(edits: Sequence[RemoveBlock] | Sequence[AddBlock]) -> None:
    names = [edit.target for edit in edits]
    check_distinct(names, "named by two edits of one kind")
    inside = next((a for a in names for b in names if a.startswith(f"{b}.")), None)
    if inside is not None:
        raise EditError(f"{inside} lies in another block that is named too; name one of them.")


def _whole(architecture: Architecture, name: str) -> Block:
    """Return a block; of one that is only a part of its module, the module itself where that holds the addition."""
    block = architecture.block(name)
    if block.modules or not block.join:
        return block
    holder = f"{module_path(architecture.flow.nodes[architecture.flow.place[block.join]])}."
    held = holder.startswith(f"{name}.")
    return (block_of_module(architecture.flow, name) if held else None) or block


def _removal(architecture: Architecture, edit: RemoveBlock) -> _Removal:
    block = _whole(architecture, edit.target)
    _check_skippable(block)
    stays = architecture.constraints.why_block_stays(architecture, block) if architecture.constraints else None
    if stays is not None:
        raise EditError(stays)
    skipped = not block.identity  # a plain unit, or one whose shortcut is a computation of its own
    tail = _tail(architecture, block) if block.modules and not skipped else [] if block.modules else None
    instead = (block.exit if skipped else block.join, block.entry)
    if tail is None:
        return _silenced(architecture, block, instead)
    first, *rest = block.modules

    def act(model: nn.Module) -> Sequence[Succession]:
        stays = [model.get_submodule(s) if isinstance(s, str) else s() for s in tail]
        after = stays[0] if len(stays) == 1 else nn.Sequential(*stays) if stays else None
        more = _takes_more(model.get_submodule(first))  # then what stays is called so, too
        put(model, first, Skip(after) if more else after or nn.Identity())
        for other in rest:
            put(model, other, nn.Identity())
        return ()

    return _Removal(act, instead, block.layers)


def _takes_more(module: nn.Module) -> bool:
    """Whether a module may be called with more than one tensor: a stochastic-depth rate, a skip, a mask."""
    return len(inspect.signature(module.forward).parameters) > 1


def _check_skippable(block: Block) -> None:
    if not block.keeps_shape:
        raise EditError(
            f"block {block.name} cannot be removed: it changes the shape from {one_sample(block.input_shape)} to "
            f"{one_sample(block.output_shape)}, and what follows needs that shape."
        )
    if block.join and not block.identity and not block.modules:
        raise EditError(
            f"block {block.name} cannot be removed: its shortcut is a computation of its own "
            f"({', '.join(block.shortcut)}), so its input does not go on unchanged."
        )


_STATELESS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish,
    "mish": nn.Mish, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid,
}  # fmt: skip
_IDEMPOTENT = frozenset({"relu", "relu6", "hardtanh"})
_NOTHING = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach"})
_Step = str | type[nn.Module]  # a module of the block, by its path, or a class to make


def _tail(architecture: Architecture, block: Block) -> list[_Step] | None:
    """Return what follows the addition within the block, as modules; ``None`` if that cannot be said in modules."""
    flow = architecture.flow
    steps: list[_Step] = []
    before = flow.nodes[flow.place[block.entry]]
    for position in sorted(flow.between(flow.place[block.join], flow.place[block.exit])):
        node = flow.nodes[position]
        if operator_name(node) in _NOTHING or _repeats(node, before):
            continue
        step = _step(architecture, block, node)
        if step is None or len(flow.feeds[position]) != 1:
            return None
        steps.append(step)
        before = node
    return steps


def _repeats(node: fx.Node, before: fx.Node) -> bool:
    """Whether a node does again what was done to its input: ReLU after ReLU."""
    name = operator_name(node)
    while operator_name(before) in _NOTHING | {"max_pool2d"} and before.all_input_nodes:
        before = before.all_input_nodes[0]
    same_bounds = node.args[1:] == before.args[1:]
    return name in _IDEMPOTENT and operator_name(before) == name and (name == "relu" or same_bounds)


def _step(architecture: Architecture, block: Block, node: fx.Node) -> _Step | None:
    path = module_path(node)
    if path.startswith(f"{block.modules[0]}.") and module_class(node) in LEAVES:
        return path
    return _STATELESS.get(operator_name(node))


def _silenced(architecture: Architecture, block: Block, instead: tuple[str, str]) -> _Removal:
    """Remove a branch whose addition lies in code that does more: its modules become nothing, or zero."""
    flow = architecture.flow
    join = flow.place[block.join or block.exit]
    branch = flow.between(flow.place[block.entry], join) - {join}
    modules = _whole_modules(architecture, branch)
    regions = [flow.region(tuple(path.split("."))) for path in modules]
    last = [path for i, path in enumerate(modules) if not _reaches(architecture, regions, i, branch)]
    ends = [flow.ends(region) for region in regions]
    kept = all(each and shape_of(flow.nodes[each[0]]) == shape_of(flow.nodes[each[1]]) for each in ends)
    if not last or not block.join or not kept:
        raise EditError(
            f"block {block.name} cannot be removed: its addition stands in code that does more "
            f"({describe(flow.nodes[join])}), and its branch is not made of modules that keep the shape. Put the block "
            "into a module of its own."
        )

    def act(model: nn.Module) -> Sequence[Succession]:
        for path in modules:
            put(model, path, Zero() if path in last else nn.Identity())
        return ()

    return _Removal(act, instead, flow.layer_names(set().union(*regions)), silenced=True)


def _whole_modules(architecture: Architecture, nodes: set[int]) -> list[str]:
    """Return the largest modules whose operators all lie among ``nodes``, in execution order."""
    flow = architecture.flow
    found: dict[str, None] = {}
    for n in sorted(nodes):
        path = flow.paths[n]
        for length in range(1, len(path) + 1):
            if flow.region(path[:length]) <= nodes:
                found[".".join(path[:length])] = None
                break
    return list(found)


def _reaches(architecture: Architecture, regions: list[set[int]], which: int, branch: set[int]) -> bool:
    """Whether what a module gives passes another module of the branch."""
    flow = architecture.flow
    others = set().union(*(r for i, r in enumerate(regions) if i != which)) if len(regions) > 1 else set()
    waiting, seen = list(regions[which]), set(regions[which])
    while waiting:
        for user in flow.users[waiting.pop()]:
            if user in others:
                return True
            if user in branch and user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


# ------------------------------------------------------------------ adding


@carries_out(AddBlock)
def carry_out_additions(architecture: Architecture, edits: Sequence[AddBlock], options: Options) -> Outcome:
    """Add copies of blocks to a copy of the model."""
    _check_distinct(edits)
    pairs = [(_template(architecture, edit), edit) for edit in edits]
    surgery = Structure(tuple(_addition(architecture, block, edit) for block, edit in pairs))
    copies = [(e.copies, architecture.model.get_submodule(path)) for block, e in pairs for path in block.modules]
    added = sum(count * p.nbytes for count, module in copies for p in module.parameters())
    before = architecture.profile().weight_bytes
    check_room(before, before + added, options.verify, f"{len(edits)} added blocks")
    more = [edit.copies * macs_of_layers(architecture, block.layers) for block, edit in pairs]
    difference = measure(architecture, surgery) if options.verify else None
    if difference is not None:
        edits = [replace(edit, approximate=not difference.exact) for edit in edits]
    inexact = difference is not None and not difference.exact
    note = ("an activation follows the copied convolutions",) if inexact else ()
    return surgery.outcome(architecture, edits, difference, more, note, keeps=(True,) * len(edits))


def why_not_repeatable(architecture: Architecture, block: Block) -> str | None:
    """Return why copies of a block cannot be put behind it, without doing anything; ``None`` if they can."""
    return refusal(lambda: identity_start(architecture, _template(architecture, AddBlock(block.name))))


def _template(architecture: Architecture, edit: AddBlock) -> Block:
    if not isinstance(edit.copies, int) or isinstance(edit.copies, bool) or not 1 <= edit.copies <= _MOST_COPIES:
        raise EditError(f"the copies of {edit.target} must be a number from 1 to {_MOST_COPIES}, not {edit.copies!r}.")
    block = architecture.block(edit.target)
    if not block.modules:
        block = block_of_module(architecture.flow, edit.target.partition("#")[0]) or block
    if not block.modules:
        join = next(n for n in architecture.flow.nodes if n.name == (block.join or block.exit))
        raise EditError(
            f"block {block.name} is only a part of a module: its addition stands in the code of "
            f"{module_path(join) or 'the network itself'} ({describe(join)}). Name that module, or give the "
            "block one of its own."
        )
    if not block.keeps_shape:
        alike = (b for b in architecture.blocks if b.modules and b.keeps_shape and b.output_shape == block.output_shape)
        behind = next((f" Repeat one behind it: {other.name}." for other in alike), "")
        raise EditError(
            f"block {block.name} cannot be repeated: it changes the shape from {one_sample(block.input_shape)} to "
            f"{one_sample(block.output_shape)}.{behind}"
        )
    return block


def _addition(architecture: Architecture, block: Block, edit: AddBlock) -> Act:
    start = identity_start(architecture, block)
    # A Sequential that is not called itself is walked by the code around it, which may count positions.
    in_row = block.modules[-1].rpartition(".")[0] in architecture.flow.called

    def act(model: nn.Module) -> Sequence[Succession]:
        members = block.modules
        names = {path: free_names(model, path, edit.copies) for path in members}
        rounds = []
        for number in range(edit.copies):
            copies = {path: copy.deepcopy(model.get_submodule(path)) for path in members}
            start(copies)
            rounds.append({names[path][number]: module for path, module in copies.items()})
        news = {name: module for one in rounds for name, module in one.items()}
        if not in_row or not insert_after(model, members[-1], news):
            last = model.get_submodule(members[-1])
            put(model, members[-1], (Chain if _takes_more(last) else nn.Sequential)(last, *news.values()))
        return ()

    return act
