"""Exact receptive fields by automatic differentiation.

The oracle runs a network's own graph with every weight positive, every nonlinearity replaced by the identity and
max pools by average pools. Then nothing can cancel, so an input has a gradient exactly if the output depends
on it. It shares no code with the formula, which is checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import argument, operator_name, shape_of, sizes_of
from convwright.errors import EditError

# Operators that are no nonlinearity by torch's tag but keep each element's dependence as it is: norms among them,
# whose statistics the formula reports apart.
_IDENTITIES = frozenset({
    "dropout", "feature_dropout", "alpha_dropout", "batch_norm", "layer_norm", "group_norm", "instance_norm",
    "rms_norm", "local_response_norm", "_native_batch_norm_legit_no_training", "clone", "contiguous", "detach",
    "alias", "to", "_to_copy", "type_as", "float", "hardtanh", "relu6", "prelu", "rrelu", "hardswish", "hardsigmoid",
    "relu", "celu", "selu", "log_sigmoid",
})  # fmt: skip
_SUMS = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "where", "masked_fill"})
_NORMALISED = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax", "normalize"})
_AVERAGES: Mapping[str, Callable[..., Tensor]] = {
    "max_pool1d": F.avg_pool1d, "max_pool2d": F.avg_pool2d, "max_pool3d": F.avg_pool3d,
    "max_pool2d_with_indices": F.avg_pool2d, "max_pool3d_with_indices": F.avg_pool3d,
}  # fmt: skip
_REDUCTIONS = frozenset({"amax", "amin", "max", "min", "logsumexp", "norm", "linalg_vector_norm", "median"})


@dataclass(frozen=True)
class Unit:
    """One unit of a layer's output: its channel and its place, e.g. (row, column)."""

    channel: int
    place: tuple[int, ...]


class Oracle:
    """Which elements of a scope a unit depends on, exactly.

    Args:
        architecture: the network.
        scope: name of the graph node whose value is the scope; the network's input if not given.
        apart: nodes whose values count as constant: the global operators that the formula reports apart.
        until: name of the last layer that will be asked for; nothing after it runs.
    """

    def __init__(
        self,
        architecture: Architecture,
        scope: str | None = None,
        apart: Collection[str] = (),
        until: str | None = None,
    ) -> None:
        self.architecture = architecture
        self.apart = frozenset(apart)
        capture = architecture.capture
        self.scope = scope or capture.inputs[0]
        last = architecture.layer(until).node if until else None
        self.values: dict[str, Any] = {}
        self.input: Tensor
        for node in capture.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = self._entering(node)
            elif node.op == "call_function" and node.name not in self.values:
                self.values[node.name] = self._call(node)
            if node.name == self.scope:
                self.values[node.name] = self.input = _ones(node).requires_grad_()
            if node.name == last:
                break

    def dependence(self, layer: str, unit: Unit) -> Tensor:
        """Return which scope elements one unit depends on.

        Args:
            layer: name of a layer after the scope.
            unit: one of its units, of the first sample.

        Returns:
            Booleans of the scope's shape, without the batch.

        Raises:
            EditError: the layer has no value here, or does not depend on the scope.
        """
        output = self.values.get(self.architecture.layer(layer).node)
        output = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(output, Tensor) or not output.requires_grad:
            raise EditError(f"{layer} does not depend on {self.scope}")
        where = (0, unit.channel, *unit.place) if output.ndim == len(unit.place) + 2 else (0, unit.channel)
        (gradient,) = torch.autograd.grad(output[where], self.input, retain_graph=True)
        return gradient[0] != 0

    def value(self, layer: str, unit: Unit) -> int:
        """Return the 3DRF of one unit: the number of scope elements that it depends on."""
        return int(self.dependence(layer, unit).sum())

    # -------------------------------------------------------------- the graph, without nonlinearity

    def _entering(self, node: fx.Node) -> Any:
        """Return an input as ones; weights so that values neither grow nor vanish; numbers as they are."""
        name = self.architecture.capture.tensors.get(node.name)
        if name is None:
            return _ones(node)
        tensor = self.architecture.capture.tensor(name)
        if not tensor.is_floating_point():
            return tensor
        fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 1
        return torch.full(tensor.shape, 1.0 / fan_in, dtype=torch.float64)

    def _call(self, node: fx.Node) -> Any:
        name, given = operator_name(node), (node.args, node.kwargs)
        arguments, options = cast(Any, fx.node.map_arg(given, lambda n: self.values[n.name]))
        if node.name in self.apart:
            return _ones(node)
        if name == "_assert_tensor_metadata":
            return None
        if name == "getitem":
            return arguments[0][arguments[1]]
        tensors = [a for a in (*arguments, *options.values()) if isinstance(a, Tensor)]
        if any(tensor.is_floating_point() for tensor in tensors):  # integers are positions to compute with
            replaced = self._replaced(node, name, tensors)
            if replaced is not None:
                return replaced
        if "dtype" in options:
            options = {**options, "dtype": torch.float64}
        return node.target(*arguments, **options)  # type: ignore[operator]

    def _replaced(self, node: fx.Node, name: str, tensors: Sequence[Tensor]) -> Any:
        """Return the value of an operator of which only the dependence counts; None if it runs as it is."""
        x = tensors[0]
        if name in _IDENTITIES:
            return x
        if name in _AVERAGES:
            return _as_recorded(node, self._average(node, name, x))
        if name in _NORMALISED:
            return x.mean(argument(node, "dim"), keepdim=True).expand_as(x)
        if name in _REDUCTIONS and len(tensors) == 1:
            mean = x.mean(argument(node, "dim"), keepdim=bool(argument(node, "keepdim", False)))
            return _as_recorded(node, mean)
        if name in ("view", "_unsafe_view"):
            return x.reshape(shape_of(node))
        if name.startswith("adaptive_max_pool"):
            pooled = getattr(F, name.replace("max", "avg"))(x, argument(node, "output_size"))
            return _as_recorded(node, pooled)
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if name in _SUMS or pointwise or name in _REDUCTIONS:
            return sum(tensor.double() for tensor in tensors)
        return None

    def _average(self, node: fx.Node, name: str, x: Tensor) -> Tensor:
        """Return an average over the windows of a max pool (a dilated one as a convolution of ones)."""
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        kernel, stride, padding, ceil = (argument(node, n) for n in names)
        dilation = argument(node, "dilation", 1)
        if set(dilation if isinstance(dilation, Sequence) else [dilation]) == {1}:
            return _AVERAGES[name](x, kernel, stride or None, padding or 0, bool(ceil))
        rank = int(next(c for c in name if c.isdigit()))
        sizes = list(kernel) if isinstance(kernel, Sequence) else [kernel]
        weight = torch.ones(x.shape[1], 1, *(sizes * rank)[:rank], dtype=x.dtype)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        return convolve(x, weight, None, stride or kernel, padding or 0, dilation, groups=x.shape[1])


def _as_recorded(node: fx.Node, value: Tensor) -> Any:
    """Return a value, with zeros beside it where the operator gives indices, too."""
    meta = node.meta.get("val")
    if not isinstance(meta, Sequence):
        return value
    return [value, *(torch.zeros(tuple(m.shape), dtype=torch.int64) for m in meta[1:])]


def _ones(node: fx.Node) -> Any:
    """Return ones of the shape of a node's value, or of each of its values."""
    meta = node.meta["val"]
    if isinstance(meta, Sequence):
        return [torch.ones(sizes_of(part), dtype=torch.float64) for part in meta]
    return torch.ones(sizes_of(meta), dtype=torch.float64)
