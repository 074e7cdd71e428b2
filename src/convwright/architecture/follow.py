"""Follow channel labels through a captured graph.

The same walk serves twice. The first walk reads the network as it is. The second walk (guided by ``Resized``) takes new
sizes for the channel groups and shows where each channel then arrives: after a flatten, a shuffle or a split the
answer is not "repeat the old indices", so it is found by executing the shape operators once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from convwright.architecture.capture.graph import (
    LEAVES,
    Capture,
    argument,
    describe,
    first_line,
    module_class,
    module_path,
    shape_of,
    sizes_of,
)
from convwright.architecture.labels import (
    Ledger,
    Plane,
    ResizeError,
    Value,
    Values,
    along,
    compact,
    line_plane,
    narrowed,
    reshape_blocks,
    with_sizes,
)
from convwright.architecture.rules import Share, opaque, rule_for, share_products

if TYPE_CHECKING:
    from convwright.architecture.channels import Resized


class Follower:
    """One walk over the graph.

    Attributes:
        ledger: ties, freezes and roles written by the rules.
        values: node name -> its value (or list of values).
        atoms: (tensor name, axis) -> its labels, in index order.
        groups: node name of each convolution -> its group count under the current sizes.
        unknown: nodes without a rule that had labels at their inputs.
        changing_axes: reshape -> the axis that takes a change of size, as runs at other sizes have shown.
        guessed: reshapes in which several axes could have taken the change of size.
        shares: (tensor, axis) -> the entries to divide among copies: a product of activations multiplies them.
        products: node, and both sides with axis and labels, of the products of activations that are summed over labels.
        entering: product -> what enters its module as wide as it, and keeps its size in step.
        broken: nodes whose rule raised an exception, with the reason that freezes what enters there.
    """

    def __init__(self, capture: Capture, guide: Resized | None = None) -> None:
        self.capture = capture
        self.guide = guide
        self.ledger = Ledger()
        self.values: dict[str, Values] = {}
        self.atoms: dict[tuple[str, int], Tensor] = {}
        self.groups: dict[str, int] = {}
        self.varying: dict[tuple[str, int], tuple[int, ...]] = {}
        self.unknown: list[fx.Node] = []
        self.changing_axes: dict[str, int] = {}
        self.guessed: list[fx.Node] = []
        self.broken: dict[str, str] = {}
        self.shares: dict[tuple[str, int], Share] = {}
        self.products: list[tuple[fx.Node, list[tuple[fx.Node, int, Tensor]]]] = []
        self.entering: dict[str, list[tuple[fx.Node, int] | None]] = {}
        self.input_labels: list[Tensor] = []
        self._met: set[tuple[str, int]] = set()
        self.walked = capture  # the graph that is being walked: eval, then training if there is one

    def run(self) -> Follower:
        """Walk the whole graph; then the training graph, for what only training uses."""
        self._walk(self.capture)
        if self.capture.training is not None:
            self._walk(self.capture.training)
        return self

    def _walk(self, capture: Capture) -> None:
        self.walked = capture
        for node in capture.graph.nodes:
            if node.op == "placeholder":
                self.values[self.key(node)] = self._enter(node)
            elif node.op == "call_function":
                self.values[self.key(node)] = self._call(node)
            elif node.op == "output":
                self._leave(node)
        if self.guide is None:
            share_products(self)

    def key(self, node: fx.Node) -> str:
        """Return the name under which a node's value is kept (training nodes have a prefix)."""
        return node.name if self.walked is self.capture else f"training/{node.name}"

    def _call(self, node: fx.Node) -> Values:
        if node.meta.get("val") is None:  # assertions return nothing
            return Value(())
        if getattr(node.target, "__name__", "") == "getitem":
            source = self.values[self.key(node.args[0])]  # type: ignore[arg-type]
            return source[int(node.args[1])] if isinstance(source, list) else source  # type: ignore[arg-type]
        key = self.key(node)
        if self.guide is not None and key in (broken := self.guide.old.follower.broken):
            return opaque(self, node, broken[key])
        try:
            return rule_for(node)(self, node)
        except ResizeError:
            raise
        except Exception as error:  # a rule that does not fit is no rule: what enters keeps its size
            if self.guide is not None:
                raise ResizeError(f"{first_line(error)} at {describe(node)}") from error
            self.broken[key] = f"its rule does not fit {describe(node)}: {first_line(error).rstrip('.')}"
            return opaque(self, node, self.broken[key])

    def _enter(self, node: fx.Node) -> Value:
        name = self.walked.tensors.get(node.name)
        if name is not None:
            return self._parameter(node, name)
        shape = shape_of(node)
        if len(shape) < 2 or shape[1] == 1:  # an axis of size 1 carries no channels (it may broadcast)
            return Value(shape)
        labels = self.ledger.fresh(shape[1])
        self.input_labels.append(labels)
        self.ledger.freeze(labels, f"they are the network's input ({node.name})")
        return Value(shape, (line_plane(labels, 1, len(shape)),))

    def _parameter(self, node: fx.Node, name: str) -> Value:
        shape, guide = shape_of(node), self.guide
        planes = []
        for axis in _labelled_axes(shape):
            size = shape[axis] if guide is None else guide.new_length(guide.old.follower.atoms[name, axis])
            if (name, axis) not in self.atoms:
                self.atoms[name, axis] = self.ledger.fresh(size)
            planes.append(line_plane(self.atoms[name, axis], axis, len(shape)))
        return Value(with_sizes(shape, planes), tuple(planes), weight=True, parameter=name)

    def _leave(self, node: fx.Node) -> None:
        if self.capture.free_outputs:
            return
        for producer in node.all_input_nodes:
            value = self.values[self.key(producer)]
            for each in value if isinstance(value, list) else [value]:
                where = self.walked.outputs.get(producer.name) or module_path(producer) or "the network itself"
                self.ledger.freeze_value(each, f"they are the network's output ({where})")

    def resolve(self, node: Any) -> Value:
        """Return the value of an argument (a scalar is a value without labels)."""
        if not isinstance(node, fx.Node):
            return Value((), weight=True)
        value = self.values[self.key(node)]
        return value[0] if isinstance(value, list) else value

    def input(self, node: fx.Node, which: int | str | fx.Node) -> Value:
        """Return an operand by position, by its name in the operator's schema, or itself where it lies in a list."""
        return self.resolve(_operand(node, which))

    def optional_input(self, node: fx.Node, name: str) -> Value | None:
        """Return an operand by schema name, or ``None`` when it is not given."""
        operand = _operand(node, name)
        return self.resolve(operand) if isinstance(operand, fx.Node) else None

    def tensor_inputs(self, node: fx.Node) -> list[Value]:
        """Return the values of all tensor operands."""
        return [self.resolve(n) for n in node.all_input_nodes]

    def meta_shape(self, node: fx.Node, which: int | str) -> tuple[int, ...]:
        """Return an operand's shape in the original network."""
        operand = _operand(node, which)
        return shape_of(operand) if isinstance(operand, fx.Node) else ()

    def channels(self, x: Value, axis: int, node: fx.Node) -> Tensor | None:
        """Return the labels along a channel axis; channels folded into the batch are frozen."""
        plane = x.plane_at(axis)
        if plane is not None and axis > 0 and 0 in plane.axes:
            self.ledger.freeze(plane.labels, f"channels lie in the batch axis at {describe(node)}")
        return along(self.ledger, x, axis)

    def weight_line(self, node: fx.Node, which: str | fx.Node, axis: int, arriving: int | None = None) -> Tensor | None:
        """Return the labels along one axis of a weight operand.

        In a guided walk, an axis that nothing has met yet takes the length that arrives.
        """
        weight = self.input(node, which)
        name = weight.parameter
        if name is not None and (name, axis) in self.atoms:
            if self.guide and arriving is not None and (name, axis) not in self._met:
                self._met.add((name, axis))
                if self.atoms[name, axis].numel() != arriving:
                    self.atoms[name, axis] = self.ledger.fresh(arriving)
            return self.atoms[name, axis]
        return along(self.ledger, weight, axis)

    def attach(self, node: fx.Node, which: str, labels: Tensor | None) -> None:
        """Tie a per-channel operand (bias, norm scale, statistics), if it is given, to a row of labels."""
        if self.input(node, which).ndim != 1:
            return
        arriving = None if labels is None else labels.numel()
        own = self.weight_line(node, which, 0, arriving)
        if own is None:
            return
        self.ledger.carry(own)
        if labels is None:
            self.ledger.freeze(own, f"its input carries no channels at {describe(node)}")
        else:
            self.ledger.tie(own, labels)

    def owner(self, node: fx.Node) -> str:
        """Return the name of the layer a weighted operator belongs to.

        The innermost module that called the operator; where a container calls the functional form, the
        module that holds the weight.
        """
        if module_class(node) in LEAVES:
            return module_path(node)
        weight = next((self.resolve(n).parameter for n in node.all_input_nodes[1:2]), None)
        if weight is not None and "parametrizations" not in weight:
            return weight.rpartition(".")[0] or weight
        return module_path(node) or node.name

    def value(self, node: fx.Node, planes: Sequence[Plane], weight: bool = False, output: int | None = None) -> Value:
        """Make the value of a node: the original shape, with the sizes its planes have now."""
        shape = sizes_of(node.meta["val"] if output is None else node.meta["val"][output])
        if 0 in shape:  # nothing is in it, so no channels
            return Value(shape, weight=weight)
        return Value(with_sizes(shape, planes), tuple(planes), weight)

    def rearranged(self, node: fx.Node, x: Value, run: Callable[[Tensor], Tensor]) -> list[Plane]:
        """Run a shape operator on the labels of a value, plane by plane.

        The first walk finds by comparison along which axes they vary then; the second takes that over, since
        under the new sizes an axis may shrink to one.
        """
        planes = []
        for index, plane in enumerate(x.planes):
            known = None if self.guide is None else self.guide.old.follower.varying[self.key(node), index]
            planes.append(compact(run(plane.labels.expand(x.shape)), known))
            self.varying[self.key(node), index] = planes[-1].axes
        return [plane for plane in planes if plane.axes]

    def execute(self, node: fx.Node, x: Value, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        """Run a shape operator on the labels of its first operand."""
        if any(isinstance(a, fx.Node) for a in [*args, *kwargs.values()]):
            result = opaque(self, node)
            assert isinstance(result, Value)
            return result
        planes = self.rearranged(node, x, lambda labels: node.target(labels, *args, **kwargs))  # type: ignore[operator]
        return self.value(node, planes, x.weight)

    def reshaped(self, node: fx.Node, x: Value, before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
        """Return the target of a reshape under the current sizes.

        Where an axis splits, the part along which channels vary takes the change (``c // g`` in a
        channel shuffle), the others keep the size that the user wrote.
        """
        if self.guide is None or tuple(before) == x.shape:
            return tuple(after)
        channel_axes = {a for p in self.guide.value(self.key(node)).planes for a in self.guide.channel_axes(p)}
        target = list(after)
        for inside, outside in reshape_blocks(before, after):
            was, now = (math.prod(sizes[a] for a in inside) for sizes in (before, x.shape))
            if was == now or not outside:
                continue
            ones = (a for a in (outside[0] - 1, outside[-1] + 1) if 0 < a < len(after) and after[a] == 1)
            possible = (*ones, *reversed(outside))
            likely = [a for a in possible if a in channel_axes]
            shown = self.guide.old.follower.changing_axes.get(node.name)  # training runs the same code
            candidates = [shown] if shown in possible else [*likely, *(a for a in possible if a not in likely)]
            if shown is None and len(possible) > 1 and self.walked is self.capture:
                self.guessed.append(node)
            for axis in candidates:
                if after[axis] * now % was == 0:
                    target[axis] = after[axis] * now // was
                    break
            else:
                raise ResizeError(f"{now} does not divide as {was} did at {describe(node)}")
        return tuple(target)

    def part_sizes(self, node: fx.Node, x: Value, axis: int, old: Sequence[int], equal: bool) -> list[int]:
        """Return the sizes of the parts that an axis is cut into, under the current sizes."""
        length = x.shape[axis]
        if self.guide is None:
            return list(old)
        if equal:
            if length % len(old):
                raise ResizeError(f"{length} does not split into {len(old)} parts at {describe(node)}")
            return [length // len(old)] * len(old)
        plane = self.guide.value(self.key(_operand(node, 0))).plane_at(axis)
        if plane is None:
            return list(old)
        labels = narrowed(plane.labels, (other for other in plane.axes if other != axis))
        if 0 in shape_of(node):  # such as the boxes of an empty image
            return list(old)
        parts = torch.split(labels.reshape(-1), list(old))
        sizes = [self.guide.new_length(part) for part in parts]
        if sum(sizes) != length:
            raise ResizeError(f"parts {sizes} do not add up to {length} at {describe(node)}")
        return sizes


def _labelled_axes(shape: Sequence[int]) -> list[int]:
    if 0 in shape:
        return []
    last = 2 if len(shape) > 3 and shape[0] > 1 else len(shape)
    return [axis for axis in range(last) if shape[axis] > 1]


def _operand(node: fx.Node, which: int | str | fx.Node) -> Any:
    if isinstance(which, int):
        return node.args[which] if which < len(node.args) else None
    return argument(node, which) if isinstance(which, str) else which
