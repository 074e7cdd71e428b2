"""The captured graph as calls of modules within calls of modules.

The network is captured with two batch sizes: a constant that differs between the two graphs depends on the batch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from convwright.architecture.capture.capture import EXPORT, capture
from convwright.architecture.capture.graph import Capture, operator_name
from convwright.errors import ConvwrightError
from convwright.export.source.text import words

SIZES = (2, 3)  # the two batch sizes
_VIEWS = words(
    "alias chunk contiguous detach diagonal dropout expand expand_as feature_dropout flatten getitem "
    "lift_fresh_copy movedim narrow numpy_T permute ravel reshape select slice split split_with_sizes "
    "squeeze swapaxes t tensor_split to transpose type_as unbind unflatten unsqueeze view view_as"
)
_NOTHING = frozenset({"alias", "lift_fresh_copy", "detach_"})
_CHECKS = frozenset({"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"})


@dataclass(eq=False)
class Region:
    """One call of a module: operators and calls of modules inside it, in order."""

    path: str
    key: str
    items: list[fx.Node | Region] = field(default_factory=list)

    def nodes(self) -> Iterator[fx.Node]:
        """Yield all operators inside."""
        for item in self.items:
            if isinstance(item, Region):
                yield from item.nodes()
            else:
                yield item


@dataclass(frozen=True, eq=False)
class Network:
    """What is written: a network, its graph, and the tensors that the graph reads.

    Attributes:
        model: the network.
        capture: the graph, with two images.
        twins: node -> the same node of the graph with three images.
        root: the call of the network itself.
        places: node that stands for a tensor -> the tensor's qualified name.
        tensors: qualified name -> tensor, of parameters, buffers and constants that the graph reads.
        aliases: node -> the node whose value it hands on.
        fresh: nodes that change a value in place which nobody looks at afterwards.
    """

    model: nn.Module
    capture: Capture
    twins: dict[fx.Node, fx.Node]
    root: Region
    places: dict[fx.Node, str]
    tensors: dict[str, Tensor]
    aliases: dict[fx.Node, fx.Node]
    fresh: frozenset[fx.Node]

    def real(self, node: fx.Node) -> fx.Node:
        """Return the node that computes a value which this one may only hand on."""
        while node in self.aliases:
            node = self.aliases[node]
        return node

    def dims(self, node: fx.Node) -> tuple[tuple[int, int], ...]:
        """Return the sizes of a value's axes in the two captures; () for what is no tensor."""
        if not isinstance(node.meta.get("val"), Tensor):
            return ()
        twin = self.twins.get(node)
        one = [int(s) for s in node.meta["val"].shape]
        two = one if twin is None else [int(s) for s in twin.meta["val"].shape]
        return tuple(zip(one, two, strict=True))


def network(model: nn.Module, example_input: Tensor) -> Network:
    """Capture a network twice and sort its operators by the modules that called them.

    Args:
        model: any network that `convwright.read` reads.
        example_input: shape (n, ...); the batch size does not matter.

    Raises:
        ReadError: it cannot be captured.
        ConvwrightError: its code does something else with two images than with three.
    """
    one, two = (capture(model, example_input.new_zeros((n, *example_input.shape[1:])), EXPORT) for n in SIZES)
    nodes, others = (list(c.graph.nodes) for c in (one, two))
    if [str(n.target) for n in nodes] != [str(n.target) for n in others]:
        raise ConvwrightError(
            f"{type(model).__name__} takes other steps with {SIZES[1]} images than with {SIZES[0]}; "
            "its Python source would hold for one batch size only. Export it with --to pt2 or onnx."
        )
    live = _live(one)
    aliases = _aliases(live)
    places, tensors = _tensors(model, one, live)
    order = [node for node in nodes if node in live and node.op == "call_function" and node not in aliases]
    root = _regions(order, frozenset(name for name, _ in model.named_modules()))
    return Network(
        model, one, dict(zip(nodes, others, strict=True)), root, places, tensors, aliases, _fresh(order, aliases)
    )


def mutates(node: fx.Node) -> bool:
    """Whether an operator changes its first argument in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and str(schema.name).endswith("_") and bool(schema.is_mutable)


def _live(capture: Capture) -> frozenset[fx.Node]:
    outputs = set(capture.outputs)
    in_place = (n for n in capture.graph.nodes if n.op == "call_function" and mutates(n))
    waiting = [n for n in capture.graph.nodes if n.name in outputs]
    waiting += [n for n in in_place if operator_name(n) != "detach"]
    live: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in live and operator_name(node) not in _CHECKS:
            live.add(node)
            waiting += node.all_input_nodes
    return frozenset(live)


def _aliases(live: frozenset[fx.Node]) -> dict[fx.Node, fx.Node]:
    found = {}
    for node in live:
        name = str(getattr(getattr(node.target, "_schema", None), "name", "")).rpartition("::")[2]
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and (name in _NOTHING or _unneeded(node, name, source)):
            found[node] = source
    return found


def _unneeded(node: fx.Node, name: str, source: fx.Node) -> bool:
    """Whether an operator hands on its input as it is: a cast to the type it has, a dropout of nothing."""
    if name == "dropout":
        return float(node.args[1]) == 0.0  # type: ignore[arg-type]
    if name != "to":
        return False
    one, two = source.meta.get("val"), node.meta.get("val")
    same = isinstance(one, Tensor) and isinstance(two, Tensor) and (one.dtype, one.device) == (two.dtype, two.device)
    return same and not any(a is True for a in (*node.args, *node.kwargs.values()))


def _tensors(
    model: nn.Module, captured: Capture, live: frozenset[fx.Node]
) -> tuple[dict[fx.Node, str], dict[str, Tensor]]:
    """Return the tensors that the graph reads; constants are named ``constant_0`` and so on."""
    known = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    places: dict[fx.Node, str] = {}
    tensors: dict[str, Tensor] = {}
    constants = 0
    for node in captured.graph.nodes:
        if node.op != "placeholder" or node not in live or node.name not in captured.tensors:
            continue
        name = captured.tensors[node.name]
        tensor = captured.tensor(name)
        if name not in known:
            holder = _common(node, frozenset(path for path, _ in model.named_modules()))
            name, constants = f"{holder}.constant_{constants}".lstrip("."), constants + 1
        places[node], tensors[name] = name, tensor
    return places, tensors


def _common(constant: fx.Node, paths: Collection[str]) -> str:
    """Return the path of the innermost module that holds all uses of a constant."""
    users, waiting = [], list(constant.users)
    while waiting:
        node = waiting.pop()
        name = str(getattr(getattr(node.target, "_schema", None), "name", "")).rpartition("::")[2]
        if name in _NOTHING:
            waiting += list(node.users)
        elif node.op == "call_function":
            users.append([path for _, path in _stack(node, paths)])
    shared = ""
    for level in zip(*users, strict=False):
        if len(set(level)) > 1:
            break
        shared = level[0]
    return shared


def _fresh(order: Sequence[fx.Node], aliases: dict[fx.Node, fx.Node]) -> frozenset[fx.Node]:
    """Return the in-place operators that may as well make a new value.

    Nobody reads the old value afterwards, under its own name or through a view of it, and it is no input.
    """
    place = {node: i for i, node in enumerate(order)}
    fresh: set[fx.Node] = set()
    for node in order:
        base = node.args[0] if mutates(node) and node.args else None
        if not isinstance(base, fx.Node) or base.op != "call_function" or base in aliases:
            continue
        own = operator_name(base) not in _VIEWS and (not mutates(base) or base in fresh)
        others = [u for u in base.users if u is not node and (u in place or u in aliases or u.op == "output")]
        if own and all(u in place and place[u] < place[node] and operator_name(u) not in _VIEWS for u in others):
            fresh.add(node)
    return frozenset(fresh)


def _stack(node: fx.Node, paths: Collection[str]) -> list[tuple[str, str]]:
    """Return (key of the call, path of the module) from the root's child inwards; a second call ends in ``@1``."""
    entries = [(str(key), str(value[0])) for key, value in (node.meta.get("nn_module_stack") or {}).items()]
    found = [(key, path if path in paths else re.sub(r"@\d+$", "", path)) for key, path in entries]
    return [(key, path) for key, path in found if path]


def _regions(order: Sequence[fx.Node], paths: Collection[str]) -> Region:
    root = Region("", "")
    stack = [root]
    homes: dict[fx.Node, Region] = {}
    for node in order:
        source = node.args[0] if operator_name(node) == "getitem" else None
        if isinstance(source, fx.Node) and source in homes:  # the parts of a list belong to what made the list
            home, parts = homes[source], {source, *source.users}
            home.items.insert(1 + max(at for at, item in enumerate(home.items) if item in parts), node)
            homes[node] = home
            continue
        wanted = _stack(node, paths)
        shared = 0
        while shared < len(wanted) and shared + 1 < len(stack) and stack[shared + 1].key == wanted[shared][0]:
            shared += 1
        del stack[shared + 1 :]
        for key, path in wanted[shared:]:
            inner = Region(path, key)
            stack[-1].items.append(inner)
            stack.append(inner)
        stack[-1].items.append(node)
        homes[node] = stack[-1]
    return root


def constant(one: Any, two: Any) -> tuple[int, int] | None:
    """Return slope and intercept of an integer that depends on the batch size; None if it does not."""
    if not isinstance(one, int) or isinstance(one, bool) or one == two:
        return None
    slope = (two - one) // (SIZES[1] - SIZES[0])
    return slope, one - slope * SIZES[0]
