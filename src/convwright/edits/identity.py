"""How a copy of a block begins as the identity.

In a residual block the parameters that scale the branch last are set to zero: found on the graph, by walking back
from the addition through operators that keep zero. In a plain unit convolutions become Dirac, norms neutral.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from convwright.architecture.blocks import addends
from convwright.architecture.capture import argument, describe, operator_name, shape_of
from convwright.architecture.layers import kind_of
from convwright.errors import EditError

if TYPE_CHECKING:
    from convwright.architecture import Architecture, Block

Start = Callable[[Mapping[str, nn.Module]], None]

# Operators that give zero where their (first) input is zero.
_KEEP_ZERO = frozenset({
    "relu", "relu6", "silu", "gelu", "hardswish", "hardtanh", "leaky_relu", "prelu", "tanh", "elu", "selu", "celu",
    "mish", "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy",
    "permute", "transpose", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "slice", "narrow",
    "getitem", "expand", "chunk", "split", "split_with_sizes", "select", "roll", "neg", "mean", "sum", "div",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle",
    "upsample_nearest2d", "upsample_bilinear2d", "_unsafe_view", "movedim",
})  # fmt: skip
_ALL_OPERANDS = frozenset({"add", "sub", "cat", "concat", "stack"})


def identity_start(architecture: Architecture, block: Block) -> Start:
    """Return what turns copies of a block's modules (by their path) into the identity.

    Raises:
        EditError: if the block cannot begin as the identity; names the operator that prevents it.
    """
    if block.kind == "residual":
        names = _last_scales(architecture, block)
        return lambda copies: _zero(copies, names)
    _check_plain(architecture, block)
    return _neutralise


# ------------------------------------------------------------------ residual blocks


def _last_scales(architecture: Architecture, block: Block) -> frozenset[str]:
    flow = architecture.flow
    found: set[str] = set()
    for nodes in addends(flow, block):
        for node in nodes:
            scales = _silencers(architecture, node)
            if scales is None:
                raise EditError(
                    f"block {block.name} cannot be repeated with its function kept: nothing scales its branch before "
                    f"{describe(node)}."
                )
            found |= scales
    outside = [name for name in found if not any(name.startswith(f"{path}.") for path in block.modules)]
    if outside or not found:
        where = outside[0] if outside else "nowhere"
        raise EditError(f"block {block.name} cannot be repeated: the scale of its branch lies outside it ({where}).")
    return frozenset(found)


def _zero(copies: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    for name in names:
        path = next(p for p in copies if name.startswith(f"{p}."))
        tensor = copies[path].get_parameter(name.removeprefix(f"{path}."))
        with torch.no_grad():
            tensor.zero_()


def _silencers(architecture: Architecture, node: fx.Node) -> set[str] | None:
    """Return parameters that, when zero, make a node's value zero; ``None`` if there are none."""
    name = operator_name(node)
    kind = kind_of(node)
    if kind in ("conv", "linear", "norm"):
        return _of_weighted(architecture, node)
    if name == "mul":
        return _of_product(architecture, node)
    operands = [n for n in node.all_input_nodes if n.name not in architecture.capture.tensors]
    if name in _ALL_OPERANDS and operands:
        parts = [_silencers(architecture, n) for n in operands]
        return None if None in parts else set().union(*(p for p in parts if p))
    if name in _KEEP_ZERO and operands:
        return _silencers(architecture, operands[0])
    return None


def _of_weighted(architecture: Architecture, node: fx.Node) -> set[str] | None:
    weight, bias = argument(node, "weight"), argument(node, "bias")
    scale = _scale_of(architecture, weight) if isinstance(weight, fx.Node) else None
    shift = _scale_of(architecture, bias) if isinstance(bias, fx.Node) else set()
    return None if not scale or shift is None else scale | shift


def _scale_of(architecture: Architecture, node: fx.Node) -> set[str] | None:
    """Return parameters that, when zero, make a weight (which may be computed from parameters) zero."""
    name = architecture.capture.tensors.get(node.name)
    if name is not None:
        return {name} if name in architecture.capture.parameters else None
    if operator_name(node) == "_weight_norm" or operator_name(node) == "_weight_norm_interface":
        return _scale_of(architecture, node.all_input_nodes[1])
    if operator_name(node) == "batch_norm" or operator_name(node) == "getitem":
        inner = argument(node, "weight") if operator_name(node) == "batch_norm" else node.all_input_nodes[0]
        return _scale_of(architecture, inner) if isinstance(inner, fx.Node) else None
    if operator_name(node) in _KEEP_ZERO | {"mul"}:
        found = (_scale_of(architecture, n) for n in reversed(node.all_input_nodes))
        return next((f for f in found if f), None)
    return None


def _of_product(architecture: Architecture, node: fx.Node) -> set[str] | None:
    """A product is zero if one factor is: a parameter (layer scale) first, else the factor of full shape."""
    factors = node.all_input_nodes
    for factor in factors:
        name = architecture.capture.tensors.get(factor.name)
        if name in architecture.capture.parameters:
            return {str(name)}
    for factor in sorted(factors, key=lambda n: shape_of(n) != shape_of(node)):
        if factor.name not in architecture.capture.tensors:
            scales = _scale_of(architecture, factor) if _is_weight(architecture, factor) else None
            scales = scales or _silencers(architecture, factor)
            if scales:
                return scales
    return None


def _is_weight(architecture: Architecture, node: fx.Node) -> bool:
    value = architecture.channels.follower.values.get(node.name)
    return not isinstance(value, list) and value is not None and value.weight


# ------------------------------------------------------------------ plain units


def _check_plain(architecture: Architecture, block: Block) -> None:
    nodes = {layer.node: layer for layer in architecture.layers}
    flow = architecture.flow
    for position in sorted(flow.span(block)):
        node = flow.nodes[position]
        layer = nodes.get(node.name)
        if len(flow.feeds[position]) != 1 or not _can_be_neutral(architecture, node):
            raise EditError(
                f"block {block.name} cannot be repeated with its function kept: {describe(node)} cannot begin as the "
                f"identity{f' ({_x(layer.input_shapes[0])} to {_x(layer.output_shape)})' if layer else ''}."
            )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))


def _can_be_neutral(architecture: Architecture, node: fx.Node) -> bool:
    name, kind = operator_name(node), kind_of(node)
    if kind == "conv":
        weight = argument(node, "weight")
        direct = isinstance(weight, fx.Node) and weight.name in architecture.capture.tensors
        strides = {int(s) for s in _listed(argument(node, "stride", 1))}
        same = shape_of(node) == shape_of(node.all_input_nodes[0]) and not name.startswith("conv_transpose")
        return direct and same and strides == {1} and all(k % 2 for k in shape_of(weight)[2:])
    if kind == "norm":
        return name == "batch_norm"
    return kind == "activation" or name in ("dropout", "feature_dropout", "clone", "contiguous", "alias", "detach")


def _listed(value: object) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [int(value)]  # type: ignore[call-overload]


def _neutralise(copies: Mapping[str, nn.Module]) -> None:
    with torch.no_grad():
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
