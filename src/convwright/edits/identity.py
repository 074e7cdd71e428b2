"""How a copy of a block begins as the identity.

In a residual block the parameters that scale the branch last are set to zero: found on the graph, by walking back
from the addition through operators that keep zero. In a plain unit convolutions become Dirac, norms neutral.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import additions
from convwright.architecture.capture.graph import argument, describe, operator_name, shape_of
from convwright.architecture.labels import Value
from convwright.architecture.layers import kind_of
from convwright.edits.compensate import scale_of
from convwright.edits.edit import one_sample
from convwright.errors import EditError

Start = Callable[[Mapping[str, nn.Module]], None]

# Operators that give zero where their (first) input is zero.
_KEEP_ZERO = frozenset({
    "relu", "relu6", "silu", "gelu", "hardswish", "hardtanh", "leaky_relu", "prelu", "tanh", "elu", "selu", "celu",
    "mish", "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy",
    "permute", "transpose", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "slice", "narrow",
    "getitem", "expand", "chunk", "split", "split_with_sizes", "select", "roll", "neg", "mean", "sum", "div",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle",
    "upsample_nearest2d", "upsample_bilinear2d", "_unsafe_view", "movedim", "reshape_as", "view_as", "expand_as",
})  # fmt: skip
_ALL_OPERANDS = frozenset({"add", "sub", "cat", "concat", "stack"})


def identity_start(architecture: Architecture, block: Block) -> Start:
    """Return what turns copies of a block's modules (by their path) into the identity.

    Raises:
        EditError: if the block cannot begin as the identity; names the operator that prevents it.
    """
    if block.kind == "residual" or additions(architecture.flow, block):
        scales, norms = _residual(architecture, block)
        return lambda copies: _scale_nothing(copies, scales, norms)
    _check_plain(architecture, block)
    return _neutralise


def _residual(architecture: Architecture, block: Block) -> tuple[frozenset[str], frozenset[str]]:
    """Return the parameters that scale the branches last, and those of norms that the passing value goes through."""
    flow = architecture.flow
    parts = additions(flow, block)
    if parts is None:
        raise EditError(f"block {block.name} cannot be repeated with its function kept: more than additions follow it.")
    search = _ZeroSearch(architecture, frozenset(flow.nodes[n].name for n in flow.span(block)))
    found: set[str] = set()
    norms: set[str] = set()
    for passing, others in parts:
        norms |= search.own_norm(passing)
        for node in others:
            scales = search.silencers(node)
            if scales is None:
                raise EditError(
                    f"block {block.name} cannot be repeated with its function kept: nothing scales its branch before "
                    f"{describe(node)}."
                )
            found |= scales
    outside = [name for name in found | norms if not any(name.startswith(f"{path}.") for path in block.modules)]
    if outside or not found:
        where = outside[0] if outside else "nowhere"
        raise EditError(f"block {block.name} cannot be repeated: the scale of its branch lies outside it ({where}).")
    return frozenset(found), frozenset(norms)


@torch.no_grad()
def _scale_nothing(copies: Mapping[str, nn.Module], scales: Iterable[str], norms: Iterable[str]) -> None:
    for name in scales:
        _owner(copies, name).get_parameter(name.rpartition(".")[2]).zero_()
    for name in norms:
        _neutral(_owner(copies, name))


def _owner(copies: Mapping[str, nn.Module], name: str) -> nn.Module:
    """Return the module, in the copies, that holds a parameter of the original."""
    path = next(p for p in copies if name.startswith(f"{p}."))
    return copies[path].get_submodule(name.removeprefix(f"{path}.").rpartition(".")[0])


@dataclass(frozen=True, eq=False)
class _ZeroSearch:
    """Looks, from the end of a branch backwards, for parameters that make it zero when they are."""

    architecture: Architecture
    inside: frozenset[str]  # nodes of the block; what lies before it is no part of the branch

    def silencers(self, node: fx.Node) -> set[str] | None:
        """Return parameters that, when zero, make a node's value zero; ``None`` if there are none."""
        if node.name not in self.inside:
            return None
        name = operator_name(node)
        if kind_of(node) in ("conv", "linear", "norm"):
            return self._of_weighted(node)
        if name == "mul":
            return self._of_product(node)
        operands = [n for n in node.all_input_nodes if not self._is_weight(n)]
        if name in _ALL_OPERANDS and operands:
            parts = [self.silencers(n) for n in operands]
            return None if None in parts else set().union(*(p for p in parts if p))
        return self.silencers(operands[0]) if name in _KEEP_ZERO and operands else None

    def own_norm(self, node: fx.Node) -> set[str]:
        """Return the scale of a batch norm inside the block; nothing for any other value."""
        if node.name not in self.inside or operator_name(node) != "batch_norm":
            return set()
        weight = argument(node, "weight")
        return scale_of(self.architecture.capture, weight) or set() if isinstance(weight, fx.Node) else set()

    def _of_weighted(self, node: fx.Node) -> set[str] | None:
        weight, bias = argument(node, "weight"), argument(node, "bias")
        scale = scale_of(self.architecture.capture, weight) if isinstance(weight, fx.Node) else None
        shift = scale_of(self.architecture.capture, bias) if isinstance(bias, fx.Node) else set()
        return None if not scale or shift is None else scale | shift

    def _of_product(self, node: fx.Node) -> set[str] | None:
        """A product is zero if one factor is: a parameter (layer scale) first, else the factor of full shape."""
        factors = sorted(node.all_input_nodes, key=lambda n: (not self._is_weight(n), shape_of(n) != shape_of(node)))
        found = (scale_of(self.architecture.capture, n) if self._is_weight(n) else self.silencers(n) for n in factors)
        return next((scales for scales in found if scales), None)

    def _is_weight(self, node: fx.Node) -> bool:
        value = self.architecture.channels.follower.values.get(node.name)
        return isinstance(value, Value) and value.weight


def _check_plain(architecture: Architecture, block: Block) -> None:
    nodes = {layer.node: layer for layer in architecture.layers}
    flow = architecture.flow
    for position in sorted(flow.span(block)):
        node = flow.nodes[position]
        layer = nodes.get(node.name)
        if len(flow.feeds[position]) != 1 or not _can_be_neutral(architecture, node):
            sizes = f" ({one_sample(layer.input_shapes[0])} to {one_sample(layer.output_shape)})" if layer else ""
            raise EditError(
                f"block {block.name} cannot be repeated with its function kept: {describe(node)} cannot begin as the "
                f"identity{sizes}."
            )


def _can_be_neutral(architecture: Architecture, node: fx.Node) -> bool:
    name, kind = operator_name(node), kind_of(node)
    if kind == "conv":
        weight = argument(node, "weight")
        direct = isinstance(weight, fx.Node) and weight.name in architecture.capture.tensors
        same = shape_of(node) == shape_of(node.all_input_nodes[0]) and not name.startswith("conv_transpose")
        dense = bool((np.array(argument(node, "stride", 1)) == 1).all())
        return direct and same and dense and all(k % 2 for k in shape_of(weight)[2:])
    if kind == "norm":
        return name == "batch_norm"
    return kind == "activation" or name in ("dropout", "feature_dropout", "clone", "contiguous", "alias", "detach")


@torch.no_grad()
def _neutralise(copies: Mapping[str, nn.Module]) -> None:
    for root in copies.values():
        for module in root.modules():
            _neutral(module)


def _neutral(module: nn.Module) -> None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.reset_running_stats()
        if isinstance(weight, Tensor):
            weight.fill_(math.sqrt(1 + module.eps))
    elif isinstance(module, nn.PReLU):
        module.weight.fill_(1.0)
    elif isinstance(weight, Tensor) and weight.ndim > 2:
        nn.init.dirac_(weight, int(getattr(module, "groups", 1)))
    else:
        return
    if isinstance(bias, Tensor):
        bias.zero_()
