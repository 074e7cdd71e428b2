"""Layers: every operator of the graph that computes something, under a unique name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from convwright.architecture.capture.graph import (
    LEAVES,
    Capture,
    Source,
    module_class,
    module_path,
    operator_name,
    shape_of,
    sizes_of,
    source_of,
)
from convwright.architecture.channels import ChannelGraph, numbered
from convwright.architecture.rules import RULES, elementwise, executed, pad

Shape = tuple[int, ...]

_OPERATORS = {
    "conv": "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d",
    "linear": "linear addmm",
    "matmul": "matmul mm bmm baddbmm einsum",
    "attention": "scaled_dot_product_attention",
    "norm": "batch_norm instance_norm layer_norm group_norm rms_norm local_response_norm "
    "_native_batch_norm_legit_no_training",
    "activation": "softmax log_softmax _softmax _log_softmax prelu relu silu hardswish gelu elu selu celu leaky_relu "
    "relu6 hardtanh hardsigmoid mish threshold rrelu log_sigmoid sigmoid tanh softplus clamp clamp_min clamp_max",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d lp_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool2d_with_indices _adaptive_avg_pool2d mean amax",
}
KINDS = {operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()}

# Operators that only rearrange or name values: they compute nothing and are no layers.
_REARRANGING = frozenset(name for name, rule in RULES.items() if rule is executed) | {
    "view", "reshape", "_unsafe_view", "unflatten", "reshape_as", "view_as", "expand", "expand_as",
    "broadcast_to", "cat", "concat", "stack", "chunk", "split", "split_with_sizes", "tensor_split",
    "slice", "narrow", "select", "unbind", "roll", "getitem", "clone", "contiguous", "detach",
    "alias", "to", "_to_copy", "dropout", "feature_dropout", "alpha_dropout", "lift_fresh_copy",
    "zeros_like", "ones_like", "full_like", "empty_like", "zeros", "ones", "full", "arange",
    "empty", "_assert_tensor_metadata", "index_select", "copy", "sym_size", "type_as",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One operator that computes something.

    Attributes:
        name: unique; the module that calls the operator, with the operator's name where a module
            calls several, and ``#2`` where a module is called again.
        kind: conv, linear, matmul, attention, norm, activation, pool, elementwise or other.
        operator: the ATen operator, e.g. ``conv2d``.
        module: class name of the module that calls it.
        input_shapes: shapes of its tensor operands, parameters excluded.
        output_shape: shape of its (first) result.
        parameters: qualified names of the parameters and buffers it uses directly.
        groups: names of the channel groups on its output, in order.
        node: its node in the captured graph.
        source: the line of the user's code that led to it.
    """

    name: str
    kind: str
    operator: str
    module: str
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    parameters: tuple[str, ...]
    groups: tuple[str, ...]
    node: str
    source: Source | None = None


def find_layers(capture: Capture, channels: ChannelGraph) -> tuple[Layer, ...]:
    """List the layers of a captured network in execution order."""
    called = (n for n in capture.graph.nodes if n.op == "call_function" and operator_name(n) not in _REARRANGING)
    nodes = [n for n in called if isinstance(first_value(n), Tensor)]
    names = numbered(_base_name(n, capture) for n in nodes)
    return tuple(_layer(n, name, capture, channels) for n, name in zip(nodes, names, strict=True))


def kind_of(node: fx.Node) -> str:
    """Return the kind of layer that an operator makes."""
    name = operator_name(node)
    if name in KINDS:
        return KINDS[name]
    is_elementwise = RULES.get(name) in (elementwise, pad) or name in {"add", "mul", "sub", "div"}
    return "elementwise" if is_elementwise else "other"


def first_value(node: fx.Node) -> object:
    """Return the value of a node, or the first of its values, without its data."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, tuple | list) and value else value


def per_axis(value: Any, count: int) -> tuple[Any, ...]:
    """Return an argument as one number for each of some axes: as it is, or one for all."""
    row = tuple(value) if isinstance(value, list | tuple) else (value,)
    return row * count if len(row) == 1 else row


def _base_name(node: fx.Node, capture: Capture) -> str:
    """A weighted operator is named by its module, any other by its module if that is a leaf."""
    path = module_path(node)
    owner = _weight_owner(node, capture)
    if module_class(node) in LEAVES:
        return path
    if owner is not None and kind_of(node) in ("conv", "linear", "norm"):
        return owner if "parametrizations" not in owner else path
    return f"{path}.{operator_name(node)}" if path else operator_name(node)


def _weight_owner(node: fx.Node, capture: Capture) -> str | None:
    for operand in node.all_input_nodes[1:]:
        tensor = capture.tensors.get(operand.name)
        if tensor is not None:
            return tensor.rpartition(".")[0] or tensor
    return module_path(node) if kind_of(node) == "conv" else None


def _layer(node: fx.Node, name: str, capture: Capture, channels: ChannelGraph) -> Layer:
    operands = node.all_input_nodes
    values = channels.follower.values[node.name]
    planes = (values[0] if isinstance(values, list) else values).planes
    return Layer(
        name=name,
        kind=kind_of(node),
        operator=operator_name(node),
        module=module_class(node),
        input_shapes=tuple(shape_of(n) for n in operands if n.name not in capture.tensors),
        output_shape=sizes_of(first_value(node)),
        parameters=tuple(capture.tensors[n.name] for n in operands if n.name in capture.tensors),
        groups=tuple(dict.fromkeys(name for plane in planes for name in channels.groups_on(plane.labels))),
        node=node.name,
        source=source_of(node),
    )
