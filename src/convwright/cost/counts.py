"""What a network costs: multiply-accumulates, parameters and memory, per layer and whole.

All numbers are for one sample (batch size 1), in eval mode. One MAC is one multiply-accumulate, half of what
``torch.utils.flop_counter`` calls FLOPs; the two agree exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, module_path, shape_of
from convwright.architecture.layers import first_value, per_axis
from convwright.architecture.rules import RULES
from convwright.cost.memory import done_once, peak_bytes, storages
from convwright.cost.recount import count_by_torch
from convwright.cost.work import macs_of, work_of

__all__ = ["LayerCost", "ModuleCost", "Profile", "count_by_torch", "profile", "weight_tensors"]

METRICS = ("macs", "params", "activations", "weights")  # what budgets call what is counted

# Operators without a label rule that only move, pick or compare values.
_NO_ARITHMETIC = frozenset({
    "index", "index_put", "gather", "scatter", "embedding", "sort", "argsort", "topk", "one_hot",
    "unfold", "im2col", "as_strided", "diagonal", "meshgrid", "take", "take_along_dim", "nonzero",
    "linspace", "eye", "new_zeros", "new_ones", "new_full", "scalar_tensor", "item",
    "affine_grid_generator", "mT", "mH", "adjoint", "real", "imag", "view_as_real",
})  # fmt: skip


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs, per sample.

    Attributes:
        name: the layer's name.
        kind: the layer's kind (conv, linear, matmul, attention, norm, activation, pool, ...).
        operator: its ATen operator.
        module: qualified name of the module that calls it ('' is the network itself).
        macs: multiply-accumulates of convolutions and matrix products.
        params: elements of the parameters it uses, each parameter at its first user only.
        norm_ops: normalised elements.
        activation_ops: elements an activation function is applied to.
        pool_ops: elements that enter pooling windows.
        elementwise_ops: elements of sums, products and other remaining results.
        output_bytes: bytes of its (first) result.
    """

    name: str
    kind: str
    operator: str
    module: str
    macs: int
    params: int
    norm_ops: int
    activation_ops: int
    pool_ops: int
    elementwise_ops: int
    output_bytes: int

    @property
    def other_ops(self) -> int:
        """Operations that are no multiply-accumulates of the columns above, together."""
        return self.norm_ops + self.activation_ops + self.pool_ops + self.elementwise_ops


@dataclass(frozen=True)
class ModuleCost:
    """What a module costs together with everything inside it, per sample."""

    macs: int = 0
    params: int = 0
    other_ops: int = 0

    def __add__(self, other: ModuleCost) -> ModuleCost:
        return ModuleCost(self.macs + other.macs, self.params + other.params, self.other_ops + other.other_ops)


@dataclass(frozen=True)
class Profile:
    """What a network costs, per sample.

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers, matrix products and attention.
        params: elements of all parameters, shared ones once (frozen ones too; buffers not).
        buffers: elements of the buffers in the state dict.
        weight_bytes: bytes of the state dict (parameters and buffers), shared tensors once.
        activation_bytes: the least memory in which the forward pass can run: each value, the input too, is freed
            after its last use; weights are not in it. See `eager_activation_bytes`.
        layers: the cost of each layer, in execution order.
        uncounted: operators whose arithmetic nothing here counts, as ``operator in module``.
        parameters: elements of each parameter by its qualified name.
    """

    macs: int
    params: int
    buffers: int
    weight_bytes: int
    activation_bytes: int
    layers: tuple[LayerCost, ...] = field(repr=False)
    uncounted: tuple[str, ...]
    parameters: dict[str, int] = field(repr=False)
    _arch: Architecture | None = field(default=None, repr=False, compare=False)

    @cached_property
    def eager_activation_bytes(self) -> int:
        """The most memory that eager PyTorch holds at one moment, without gradients; budgets are judged on it.

        The caller holds the input, and each variable of the network's code its value, so this is more than
        `activation_bytes`. The code is executed on fake tensors, when this is asked for first.
        """
        assert self._arch is not None
        return peak_bytes(self._arch.held, done_once(self._arch.capture), self._arch.inputs.batch)

    @property
    def complete(self) -> bool:
        """Whether every operator's arithmetic is counted."""
        return not self.uncounted

    @property
    def by_kind(self) -> dict[str, ModuleCost]:
        """Costs summed over the layers of each kind."""
        return _summed((layer.kind, _cost(layer)) for layer in self.layers)

    def by_module(self, depth: int | None = None) -> dict[str, ModuleCost]:
        """Return the cost of each module together with everything inside it.

        Args:
            depth: how many levels below the network itself; all when not given.

        Returns:
            Qualified name -> cost; ``""`` is the whole network. Parameters are counted in the module
            that holds them, operations in the module that calls them.
        """
        work = [(c.module, ModuleCost(c.macs, 0, c.other_ops)) for c in self.layers]
        held = [(n.rpartition(".")[0], ModuleCost(0, p)) for n, p in self.parameters.items()]
        return _summed((a, cost) for path, cost in work + held for a in _ancestors(path, depth))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dictionaries."""
        plain = asdict(replace(self, _arch=None))
        del plain["_arch"]
        return {**plain, "eager_activation_bytes": self.eager_activation_bytes, "complete": self.complete}


def profile(arch: Architecture) -> Profile:
    """Count what a network costs.

    A batch of n in the example input is divided out; work on weights alone is done once per batch
    and not divided.

    Args:
        arch: the network.

    Returns:
        The costs of one sample.
    """
    batch, once = arch.inputs.batch, done_once(arch.capture)
    nodes: dict[str, fx.Node] = {n.name: n for n in arch.capture.graph.nodes}
    held = _params_by_node(arch, once)
    layers = tuple(
        _layer_cost(la, nodes[la.node], held.get(la.node, 0), 1 if la.node in once else batch) for la in arch.layers
    )
    unknown = [la for la in arch.layers if work_of(nodes[la.node]) is None and not _is_cheap(nodes[la.node], la)]
    uncounted = (f"{la.operator} in {module_path(nodes[la.node]) or 'the network itself'}" for la in unknown)
    weights = weight_tensors(arch.model)
    parameters = {n: t.numel() for n, t in weights.items() if isinstance(t, nn.Parameter)}
    return Profile(
        macs=counted_macs(arch),
        params=sum(parameters.values()),
        buffers=sum(t.numel() for n, t in weights.items() if n not in parameters),
        weight_bytes=sum(t.numel() * t.element_size() for t in weights.values()),
        activation_bytes=peak_bytes(storages(arch.capture), once, batch),
        layers=layers,
        uncounted=tuple(dict.fromkeys(uncounted)),
        parameters=parameters,
        _arch=arch,
    )


def counted_macs(arch: Architecture) -> int:
    """Return the multiply-accumulates of one sample, with work on weights, which is done once per batch."""
    once = done_once(arch.capture)
    counts = {n.name: macs_of(n) for n in arch.capture.graph.nodes if n.op == "call_function"}
    of_weights = sum(count for name, count in counts.items() if name in once)
    return (sum(counts.values()) - of_weights) // arch.inputs.batch + of_weights


def counted_params(arch: Architecture) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in arch.model.parameters())


def weight_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict by name, shared ones once, under their first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _layer_cost(layer: Layer, node: fx.Node, params: int, share: int) -> LayerCost:
    """Return what a layer costs, given the parameters that it is the first to use, and what the batch divides by."""
    first = first_value(node)
    ops = dict.fromkeys(("norm", "activation", "pool", "elementwise"), 0)
    if work_of(node) is None:
        ops[layer.kind if layer.kind in ops else "elementwise"] = _operations(node, layer) // share
    return LayerCost(
        name=layer.name,
        kind=layer.kind,
        operator=layer.operator,
        module=module_path(node),
        macs=macs_of(node) // share,
        params=params,
        **{f"{name}_ops": count for name, count in ops.items()},
        output_bytes=(first.nbytes if isinstance(first, Tensor) else 0) // share,
    )


def _operations(node: fx.Node, layer: Layer) -> int:
    """Return how many elements a layer without multiply-accumulates works on."""
    if layer.kind != "pool":
        return math.prod(layer.output_shape)
    window = argument(node, "kernel_size")
    if window is None:  # adaptive: each input element enters (at least) one window
        return math.prod(shape_of(node.all_input_nodes[0]))
    sides = per_axis(window, max(len(layer.output_shape) - 2, 1))
    return math.prod((*layer.output_shape, *map(int, sides)))


def _params_by_node(arch: Architecture, once: frozenset[str]) -> dict[str, int]:
    """Give each parameter to the first layer that uses it, directly or through computed weights."""
    capture = arch.capture
    layers = {layer.node for layer in arch.layers}
    carried: dict[str, dict[str, int]] = {}
    given: set[int] = set()
    result: dict[str, int] = {}
    for node in capture.graph.nodes:
        name = capture.tensors.get(node.name)
        if name is not None:
            size = math.prod(shape_of(node)) if name in capture.parameters else 0
            carried[node.name] = {name: size} if size else {}
            continue
        arriving = {k: v for n in node.all_input_nodes for k, v in carried.get(n.name, {}).items()}
        if node.name in layers and node.name not in once:
            new = {id(capture.tensor(name)): size for name, size in arriving.items()}
            result[node.name] = sum(size for key, size in new.items() if key not in given)
            given.update(new)
        else:
            carried[node.name] = arriving
    return result


def _is_cheap(node: fx.Node, layer: Layer) -> bool:
    """Return whether an operator does at most a few operations per element."""
    if layer.kind in ("norm", "activation", "pool", "elementwise"):
        return True
    if layer.kind != "other":  # a convolution or product in a form without a formula
        return False
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    ruled = layer.operator in RULES and not layer.operator.startswith(("fft_", "deform_conv"))
    return pointwise or ruled or layer.operator in _NO_ARITHMETIC


def _cost(layer: LayerCost) -> ModuleCost:
    return ModuleCost(layer.macs, layer.params, layer.other_ops)


def _summed(costs: Iterable[tuple[str, ModuleCost]]) -> dict[str, ModuleCost]:
    result: dict[str, ModuleCost] = {}
    for key, cost in costs:
        result[key] = result.get(key, ModuleCost()) + cost
    return result


def _ancestors(path: str, depth: int | None) -> list[str]:
    """Return '' and the prefixes of a module path, down to ``depth`` levels."""
    parts = path.split(".") if path else []
    count = len(parts) if depth is None else min(depth, len(parts))
    return [".".join(parts[:i]) for i in range(count + 1)]
