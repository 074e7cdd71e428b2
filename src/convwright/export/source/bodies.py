"""The code of one call of a module: which lines, and what the values in them are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from convwright.architecture.capture.graph import operator_name
from convwright.errors import ConvwrightError
from convwright.export.source.operators import written
from convwright.export.source.regions import SIZES, Network, Region
from convwright.export.source.text import Attr, Call, Expr, Joined, Text, flat, positional, template

_NAMES = ("x", "y", "z", "u", "v", "w", "r", "s", "t")
_MOST_PARTS = 6  # of a list that are unpacked
_FOREVER = 10**9

Dims = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Line:
    """``targets = expr``, once or for each module of a list.

    Attributes:
        targets: what is assigned to; () for a call whose value nobody needs.
        expr: what is assigned.
        dims: sizes of the first target's axes; () if they are those of the first argument.
        loop: the list that is gone through; then `expr` calls ``layer``.
        child: path of the module that the line calls; "" if it is an operator.
        unpacks: whether the value is a list, unpacked into the targets.
    """

    targets: tuple[str, ...]
    expr: Expr
    dims: Dims = ()
    loop: Expr | None = None
    child: str = ""
    unpacks: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What two lines have in common that differ in constants only."""
        return self.targets, template(self.expr), None if self.loop is None else template(self.loop), self.unpacks


@dataclass(frozen=True, eq=False)
class Body:
    """A method: its arguments, its lines, and what it returns.

    Attributes:
        params: names of the arguments after ``self``.
        lines: the lines.
        returns: names of the values returned.
        entry: sizes of the first argument's axes.
    """

    params: tuple[str, ...]
    lines: tuple[Line, ...]
    returns: tuple[str, ...]
    entry: Dims = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What two methods have in common that differ in constants only."""
        return self.params, tuple(line.key for line in self.lines), self.returns


class CallFlow:
    """Which values enter and leave the calls of a network's modules."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.users: dict[fx.Node, list[fx.Node | None]] = {}
        for node in net.root.nodes():
            for source in node.all_input_nodes:
                self.users.setdefault(net.real(source), []).append(node)
        named = {node.name: node for node in net.capture.graph.nodes}
        self.results = [net.real(named[name]) for name in net.capture.outputs if name in named]
        for node in self.results:
            self.users.setdefault(node, []).append(None)

    def inside(self, node: fx.Node | None, path: str) -> bool:
        """Whether a node stands for a tensor of a module or of one inside it."""
        name = self.net.places.get(node) if node is not None else None
        return name is not None and (not path or name.startswith(f"{path}."))

    def inputs(self, item: fx.Node | Region, path: str) -> list[fx.Node]:
        """Return the values that enter an item, tensors of the module `path` left out."""
        nodes = [item] if isinstance(item, fx.Node) else list(item.nodes())
        own = set(nodes)
        found: dict[fx.Node, None] = {}
        for node in nodes:
            for source in node.all_input_nodes:
                real = self.net.real(source)
                if real not in own and not self.inside(real, path):
                    found[real] = None
        return list(found)

    def outputs(self, region: Region) -> list[fx.Node]:
        """Return the values that leave a call."""
        own = set(region.nodes())
        return [node for node in region.nodes() if any(user not in own for user in self.users.get(node, []))]


class CallWriter:
    """Writes one call of a module.

    Args:
        flow: the values of the network.
        region: the call.
        access: from a qualified name below the module to the expression for it.
        method: from the call of another module to the name of the method that it means.
        special: an operator that the base class carries out.
    """

    def __init__(
        self,
        flow: CallFlow,
        region: Region,
        access: Callable[[str], Expr],
        method: Callable[[Region], str],
        special: fx.Node | None,
    ) -> None:
        self.flow, self.region, self.access, self.method, self.special = flow, region, access, method, special
        self.net = flow.net
        self.names: dict[fx.Node, str] = {}
        self.last: dict[fx.Node, int] = {}
        self.now = 0

    def body(self) -> Body:
        """Return the method."""
        inputs = self.flow.inputs(self.region, self.region.path)
        returns = self.flow.outputs(self.region) if self.region.path else self.flow.results
        for at, item in enumerate(self.region.items):
            self.last.update(dict.fromkeys(self.flow.inputs(item, self.region.path), at))
        self.last.update(dict.fromkeys(returns, _FOREVER))
        for node in inputs:
            self.names[node] = self._new()
        params = tuple(self.names[node] for node in inputs)
        entry = self.net.dims(inputs[0]) if inputs else ()
        lines = []
        for at, item in enumerate(self.region.items):
            self.now = at
            if isinstance(item, Region):
                lines.append(self._called(item))
            elif item not in self.names:  # the parts of an unpacked list have their names already
                lines.append(self._operator(item))
        # Lines that call a list's modules one after the other: for layer in self.layers: x = layer(x).
        runs = [[*run] for _, run in itertools.groupby(enumerate(lines), key=lambda pair: _entry(*pair) or pair[0])]
        folded = tuple(run[0][1] if len(run) == 1 else _loop([line for _, line in run]) for run in runs)
        return Body(params, folded, tuple(self.names[node] for node in returns), entry)

    def _called(self, item: Region) -> Line:
        inputs = self.flow.inputs(item, item.path)
        target, method = self.access(item.path), self.method(item)
        called = target if method == "forward" else Attr(target, method)
        expr = Call(called, positional(*(self.value(node) for node in inputs)))
        return self._assigned(self.flow.outputs(item), inputs, expr, child=item.path)

    def _operator(self, node: fx.Node) -> Line:
        inputs = self.flow.inputs(node, self.region.path)
        if node is self.special:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            expr: Expr = Call(Text("super().forward"), positional(self.value(source)))
        else:
            expr = written(node, self)
        if not self.flow.users.get(node):
            return Line((), expr)
        parts = self._parts(node)
        return self._assigned(parts or [node], inputs, expr, unpacks=bool(parts))

    def _parts(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that take a list apart, if there are few and nothing else uses the list."""
        value = node.meta.get("val")
        users = [user for user in self.flow.users.get(node, []) if user is not None]
        if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST_PARTS:
            return []
        if len(users) != len(self.flow.users[node]) or any(operator_name(u) != "getitem" for u in users):
            return []
        by_place = {int(user.args[1]): user for user in users}  # type: ignore[arg-type]
        return [by_place[i] for i in range(len(value))] if len(by_place) == len(value) == len(users) else []

    def _assigned(
        self, outputs: Sequence[fx.Node], inputs: Sequence[fx.Node], expr: Expr, child: str = "", unpacks: bool = False
    ) -> Line:
        dying = [node for node in inputs if self.last.get(node) == self.now and node in self.names]
        free = sorted((self.names[node] for node in dying), key=_rank)
        for node in dying:
            del self.names[node]
        for node in outputs:
            self.names[node] = free.pop(0) if free else self._new()
        dims = self.net.dims(outputs[0]) if outputs else ()
        before = next((self.net.dims(node) for node in inputs if self.net.dims(node)), ())
        targets = tuple(self.names[node] for node in outputs)
        return Line(targets, expr, () if dims == before else dims, child=child, unpacks=unpacks)

    def _new(self) -> str:
        used = set(self.names.values())
        more = (f"x{i}" for i in itertools.count(1))
        return next(name for name in itertools.chain(_NAMES, more) if name not in used)

    def value(self, node: fx.Node) -> Expr:
        """Return the name of a value."""
        real = self.net.real(node)
        if real in self.names:
            return Text(self.names[real])
        if real in self.net.places:
            return self.access(self.net.places[real])
        raise ConvwrightError(f"the value {node.name} is used where it is not known; export with --to pt2 or onnx")

    def batch(self, node: fx.Node) -> Expr:
        """Return the batch size, as an expression for an argument of `node`."""
        named = [self.net.real(n) for n in node.all_input_nodes if self.net.real(n) in self.names]
        axes = [(k, a, pair) for k in (*named, *self.names) for a, pair in enumerate(self.net.dims(k))]
        for known, axis, pair in axes:
            if pair == SIZES:
                return Joined((Text(self.names[known]), Text(f".shape[{axis}]")))
        for known, axis, (one, two) in axes:  # images and heads on one axis
            if one != two and one * SIZES[1] == two * SIZES[0]:
                factor = Text(f" // {one // SIZES[0]}")
                return Joined((Text(self.names[known]), Text(f".shape[{axis}]"), factor))
        where = self.region.path or "the network itself"
        raise ConvwrightError(
            f"{operator_name(node)} in {where} depends on the batch size, which no value there has; "
            "export with --to pt2 or onnx"
        )


def _rank(name: str) -> tuple[int, str]:
    return (_NAMES.index(name), "") if name in _NAMES else (len(_NAMES) + len(name), name)


def is_chain(flow: CallFlow, region: Region) -> bool:
    """Whether a call hands one value through modules directly below it, each once and in the order of their names."""
    prefix = f"{region.path}." if region.path else ""
    seen: list[str] = []
    value: fx.Node | None = None
    for item in region.items:
        if not isinstance(item, Region) or "." in item.path.removeprefix(prefix) or item.path in seen:
            return False
        inputs, outputs = flow.inputs(item, item.path), flow.outputs(item)
        if len(inputs) != 1 or len(outputs) != 1 or (value is not None and inputs[0] is not value):
            return False
        following = region.items[region.items.index(item) + 1 :]
        if following:
            allowed = set(following[0].nodes()) if isinstance(following[0], Region) else {following[0]}
            if not allowed.issuperset(flow.users[outputs[0]]):
                return False
        value = outputs[0]
        seen.append(item.path)
    return bool(seen)


def _entry(at: int, line: Line) -> tuple[str, int, tuple[str, ...]] | None:
    """Return what the lines ``x = self.layers[i](x)`` of one loop share: the list, i less their place, and x."""
    if not isinstance(line.expr, Call) or not line.child or len(line.targets) != 1:
        return None
    called, args = line.expr.function, line.expr.args
    if not isinstance(called, Joined) or len(args) != 1 or not isinstance(called.parts[-1], Text):
        return None
    name = args[0].value
    index = called.parts[-1].text
    if not isinstance(name, Text) or (name.text,) != line.targets or not index.strip("[]").isdigit():
        return None
    return template(Joined(called.parts[:-1])), int(index.strip("[]")) - at, line.targets


def _loop(lines: Sequence[Line]) -> Line:
    expr = lines[0].expr
    assert isinstance(expr, Call)
    assert isinstance(expr.function, Joined)
    *base, index = expr.function.parts
    first = int(flat(index).strip("[]"))
    loop = Joined((Joined(tuple(base)), Text(f"[{first}:{first + len(lines)}]")))
    return Line(lines[0].targets, Call(Text("layer"), expr.args), lines[-1].dims, loop, lines[0].child)
