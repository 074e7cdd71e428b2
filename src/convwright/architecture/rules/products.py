"""Products of two tensors: with a weight, as a linear layer is one, and of two activations, as in attention."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import (
    argument,
    describe,
    einsum_operands,
    module_class,
    module_path,
    module_paths,
    operator_name,
    shape_of,
)
from convwright.architecture.labels import Plane, Value, Values, along, line_plane, merge, narrowed, reduce_axes
from convwright.architecture.rules.registry import RULES, across, opaque, rule
from convwright.architecture.rules.shapes import executed, expand, reshape, select, slice_, spatial, split

if TYPE_CHECKING:
    from convwright.architecture.follow import Follower


class Side(NamedTuple):
    """An operand of a product: its node, its value, and a letter for each of its axes."""

    node: fx.Node
    value: Value
    letters: str


@rule("matmul", "mm", "bmm", "baddbmm")
def matmul(follower: Follower, node: fx.Node) -> Values:
    """Rows and columns pass, the contracted axis is summed over; `baddbmm` adds its first operand."""
    rank, sides = len(shape_of(node)), list[Side]()
    for which, letters in ((-2, "ik"), (-1, "kj")):
        value = follower.resolve(node.args[which])
        if value.ndim < 2:
            return opaque(follower, node)
        batch = string.ascii_uppercase[rank - value.ndim : rank - 2]
        sides.append(Side(node.args[which], value, batch + letters))  # type: ignore[arg-type]
    planes = _product(follower, node, sides, string.ascii_uppercase[: rank - 2] + "ij")
    if len(node.args) > 2:
        planes = merge(follower.ledger, [Value((1,) * rank, planes), follower.input(node, 0)], rank)
    return follower.value(node, planes, all(side.value.weight for side in sides))


@rule("einsum")
def einsum(follower: Follower, node: fx.Node) -> Values:
    """A product, its axes named by letters."""
    sides = [Side(operand, follower.resolve(operand), letters) for operand, letters in einsum_operands(node)]
    if len(sides) != 2:
        return opaque(follower, node)
    planes = _product(follower, node, sides, str(node.args[0]).replace(" ", "").partition("->")[2])
    return follower.value(node, planes, all(side.value.weight for side in sides))


@rule("scaled_dot_product_attention")
def attention(follower: Follower, node: fx.Node) -> Values:
    """Products of queries and keys, softmax over the keys, times the values."""
    operands = [argument(node, name) for name in ("query", "key", "value")]
    rank, batch = len(shape_of(node)), string.ascii_uppercase[: len(shape_of(node)) - 2]
    if argument(node, "enable_gqa") or any(len(shape_of(each)) != rank for each in operands):
        return opaque(follower, node)
    if (mask := follower.optional_input(node, "attn_mask")) is not None:
        follower.ledger.freeze_value(mask, f"they lie along the scores of {describe(node)}")
    query, key, value = (
        Side(each, follower.resolve(each), batch + letters)
        for each, letters in zip(operands, ("id", "jd", "je"), strict=True)
    )
    scores = Value((1,) * rank, _summed(follower, node, (query, key), f"{batch}ij"))
    across(follower, scores, (rank - 1,), node)
    return follower.value(node, _summed(follower, node, (Side(node, scores, f"{batch}ij"), value), f"{batch}ie"))


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


def _product(follower: Follower, node: fx.Node, sides: Sequence[Side], out: str) -> tuple[Plane, ...]:
    """Return the planes of a product; the axes of the result are named by letters, too."""
    if not any(side.value.weight for side in sides):
        return _summed(follower, node, sides, out)
    ledger, (weight, given) = follower.ledger, sides[::-1] if sides[1].value.weight else sides
    for letter in set(weight.letters) & set(given.letters):
        own, other = (along(ledger, side.value, side.letters.index(letter)) for side in (weight, given))
        if own is None:
            continue
        if other is not None:
            ledger.tie(own, other)
        elif letter not in out or given.value.shape[given.letters.index(letter)] > 1:
            ledger.freeze(own, f"its input carries no channels at {describe(node)}")
        if letter not in out:
            ledger.consume(own)
    placed = [_placed(follower, side.value, side.letters, out) for side in sides]
    for plane in placed[sides.index(weight)].planes:
        if not any(set(plane.axes) & set(other.axes) for other in placed[sides.index(given)].planes):
            ledger.produce(plane.labels, follower.owner(node))
    return merge(ledger, placed, len(out))


def _summed(follower: Follower, node: fx.Node, sides: Sequence[Side], out: str) -> tuple[Plane, ...]:
    """Return the planes of a product of two activations.

    Channels that are summed over are the same on both sides. The batch axes are heads, or what else there is: as all
    have equally many channels, a channel is one place in all of them.
    """
    ledger, both = follower.ledger, [letter for letter in sides[0].letters if letter in sides[1].letters]
    summed, kept = set(both) - set(out), []
    for letter in (each for each in both if each in summed):
        axes = [side.letters.index(letter) for side in sides]
        planes = [side.value.plane_at(axis) for side, axis in zip(sides, axes, strict=True)]
        tables = [_table(plane, axis) for plane, axis in zip(planes, axes, strict=True) if plane is not None]
        if len(tables) == 2:
            ledger.tie_rows(torch.cat(tables))
            follower.products.append((node, [(s.node, a, t) for s, a, t in zip(sides, axes, tables, strict=True)]))
            if len(tables[0]) > 1:  # heads
                _keep_in_step(follower, node, tables[0])
        elif tables:
            ledger.freeze(tables[0], f"they are summed over with what carries no channels at {describe(node)}")
    for side in sides:
        whole = tuple(p for p in side.value.planes if not any(side.letters[a] in summed for a in p.axes))
        kept.append(_placed(follower, Value(side.value.shape, whole), side.letters, out).planes)
    heads = {out.index(letter) for letter in both if letter in out}
    return merge(ledger, [_by_heads(follower, node, kept, i, heads) for i in (0, 1)], len(out))


def _by_heads(
    follower: Follower, node: fx.Node, planes: Sequence[Sequence[Plane]], which: int, heads: set[int]
) -> Value:
    """Return one side with the channels at the same place of each head tied."""
    split = [any(heads & set(p.axes) and set(p.axes) - heads for p in each) for each in planes]
    kept = []
    for plane in planes[which]:
        free = [axis for axis in plane.axes if axis not in heads]
        if not free and any(split):
            follower.ledger.freeze(plane.labels, f"they lie along the heads of {describe(node)}")
            continue
        if free:
            table = _table(plane, *free)
            follower.ledger.tie_rows(table)
            _keep_in_step(follower, node, table)
            if split[1 - which]:  # both vary along heads: the channels of the first stand for all
                plane = Plane(narrowed(plane.labels, heads & set(plane.axes)), tuple(free))
        kept.append(plane)
    return Value((1,) * len(shape_of(node)), tuple(kept))


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


def _table(plane: Plane, *axes: int) -> Tensor:
    """Return the labels of a plane with some of its axes as columns, and all others as rows."""
    columns = plane.labels.movedim(axes, tuple(range(-len(axes), 0)))
    return columns.reshape(-1, columns.shape[-len(axes) :].numel())


def _keep_in_step(follower: Follower, node: fx.Node, table: Tensor) -> None:
    """Tie the sizes of a table, heads by channels, to those of what enters the module, if they are equal.

    Its code says ``n, c, h, w = x.shape``, and views by that.
    """
    path, made = module_path(node), follower.entering.setdefault(follower.key(node), [])
    if follower.guide is None:
        made.append(_entering(follower, path, table, module_class(node) == "MultiheadAttention") if path else None)
    else:  # as in the first walk, whatever the sizes are now
        made.append(follower.guide.old.follower.entering[follower.key(node)][len(made)])
    if made[-1] is not None:
        source, axis = made[-1]
        line = along(follower.ledger, follower.resolve(source), axis)
        assert line is not None
        rows = line.reshape(-1, table.shape[1])
        follower.ledger.tie_rows(rows)
        follower.ledger.equal_parts.append(torch.stack([line, table[: len(rows)].reshape(-1)]))


def _entering(follower: Follower, path: str, table: Tensor, batches: bool) -> tuple[fx.Node, int] | None:
    """Return the value that enters a module, and its axis that is as long as all heads together; None if none is."""
    inside = [n for n in follower.walked.graph.nodes if n.op == "call_function" and path in module_paths(n)]
    outside = (source for n in inside for source in n.all_input_nodes if path not in module_paths(source))
    source: fx.Node = next(each for each in outside if each.name not in follower.walked.tensors)
    for plane in follower.resolve(source).planes:
        long = plane.labels.numel()
        equal = table.numel() % long == long % table.shape[1] == 0 if batches else table.numel() == long
        if len(plane.axes) == 1 and equal:
            return source, plane.axes[0]
    return None


# ------------------------------------------------------------------ copies of channels that are summed over


class Share(NamedTuple):
    """Entries of a parameter axis that one side of a product is proportional to: divided among copies, the sum stays.

    ``rooted`` is node and axis of that side, if the operator divides by the root of how many channels lie there;
    ``product`` is the operator in words.
    """

    entries: Tensor
    rooted: tuple[str, int] | None
    product: str


Entries = tuple[tuple[str, int], Tensor]
_CUTS = {split, slice_, select}
_SCALED = _CUTS | {executed, reshape, expand, spatial}  # rules of what hands on a factor, and more operators
_SCALED_NAMES = frozenset({
    "getitem", "clone", "contiguous", "alias", "detach", "to", "dropout", "mul", "div", "neg", "relu", "leaky_relu",
})  # fmt: skip


def share_products(follower: Follower) -> None:
    """Find where copies of channels that are summed over in products of activations can be divided.

    That is a layer or a batch norm that one side is proportional to and nothing else reads. Where there is none, the
    sum is a statistic across the channels: another number of them changes it.
    """
    for node, sides in follower.products:
        if any(_weighs(at) for at, *_ in sides):
            continue  # shares of one: those of copies are smaller by themselves
        by_root = operator_name(node) == "scaled_dot_product_attention" and argument(node, "scale") is None
        by_root = by_root or module_class(node) == "MultiheadAttention"
        for at, axis, table in sides if sides[0][0] is not sides[1][0] else ():
            if found := dict(_sources(follower, node, at, set(table.reshape(-1).tolist()))):
                rooted = (follower.key(at), axis) if by_root else None
                follower.shares |= {each: Share(entries, rooted, describe(node)) for each, entries in found.items()}
                break
        else:
            follower.ledger.across += [(table, (0, 1), describe(node)) for *_, table in sides]
    follower.products.clear()


def _weighs(at: fx.Node) -> bool:
    """Whether a side is a softmax, or a score that attention takes one of."""
    while operator_name(at) in _SCALED_NAMES or RULES.get(operator_name(at)) in _SCALED:
        at = at.all_input_nodes[0]
    return operator_name(at) in ("softmax", "_softmax", "scaled_dot_product_attention")


def _sources(follower: Follower, reader: fx.Node, at: fx.Node, wanted: set[int]) -> list[Entries]:
    """Return parameter axes, with truth values per entry, that some channels of a value are proportional to."""
    while not any(_reads(follower, user, wanted) for user in at.users if user is not reader):
        name, weight = operator_name(at), argument(at, "weight")
        if isinstance(weight, fx.Node) and name.startswith(("conv", "linear", "batch_norm")):
            given = [(weight, int("transpose" in name)), (argument(at, "bias"), 0)]
            found = [_entries(follower, at, each, axis, wanted) for each, axis in given if isinstance(each, fx.Node)]
            return [each for each in found if each] if len(weight.users) == 1 and all(found) else []
        operands = at.all_input_nodes if name == "mul" else at.all_input_nodes[:1]
        carrying = [n for n in operands if wanted & _labels(follower, n)]
        if len(carrying) != 1 or not (name in _SCALED_NAMES or RULES.get(name) in _SCALED):
            return []
        reader, at = at, carrying[0]
    return []


def _reads(follower: Follower, user: fx.Node, wanted: set[int]) -> bool:
    """Whether an operator reads some of the channels, and does not only cut out others."""
    return not _cuts(user) or bool(wanted & _labels(follower, user))


def _cuts(node: fx.Node) -> bool:
    return operator_name(node) == "getitem" or RULES.get(operator_name(node)) in _CUTS


def _labels(follower: Follower, node: fx.Node) -> set[int]:
    value = follower.values[follower.key(node)]
    planes = (plane for each in (value if isinstance(value, list) else [value]) for plane in each.planes)
    return {label for plane in planes for label in plane.line().tolist()}


def _entries(follower: Follower, at: fx.Node, given: fx.Node, axis: int, wanted: set[int]) -> Entries | None:
    """Return the entries of a weight or a bias that make some channels of what an operator gives."""
    own = follower.resolve(given).plane_at(axis)
    made = next((p.line() for p in follower.resolve(at).planes if wanted & set(p.line().tolist())), torch.empty(0))
    while given.name not in follower.walked.tensors and _cuts(given):
        given = given.all_input_nodes[0]
    place = follower.walked.tensors.get(given.name, ""), axis
    if own is None or place not in follower.atoms or own.labels.numel() != made.numel():
        return None
    mine = own.line()[torch.isin(made, torch.tensor(list(wanted), dtype=made.dtype))]
    return place, torch.isin(follower.atoms[place], mine)
