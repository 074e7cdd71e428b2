"""Multiply-accumulates: one small formula per operator.

A formula gives *factors*, not numbers: the number of elements of a value, the length of an axis, or a
constant. Counting a network evaluates the factors on shapes; the cost model evaluates the same factors as
functions of the channel widths. So the two cannot disagree.

To count a further operator, write one function ``(node) -> Work`` under ``@counts("its_name")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from convwright.architecture.capture.graph import argument, einsum_operands, operator_name, shape_of
from convwright.architecture.rules.registry import filing


@dataclass(frozen=True)
class Numel:
    """The number of elements of a node's value."""

    node: fx.Node


@dataclass(frozen=True)
class Length:
    """The length of one axis (from 0) of a node's value."""

    node: fx.Node
    axis: int


Factor = Numel | Length | int
Term = tuple[Factor, ...]
Work = tuple[Term, ...]  # a sum of products
Formula = Callable[[fx.Node], "Work | None"]

WORK: dict[str, Formula] = {}
counts = filing(WORK)  # by the operators' bare names


def work_of(node: fx.Node) -> Work | None:
    """Return the multiply-accumulates of a node as factors.

    Returns:
        A sum of products; ``None`` if no formula knows this operator in this use.
    """
    formula = WORK.get(operator_name(node))
    return None if formula is None else formula(node)


def macs_of(node: fx.Node) -> int:
    """Return the multiply-accumulates of a node, for the whole batch it was captured with."""
    return sum(math.prod(size_of(f) for f in term) for term in work_of(node) or ())


def size_of(factor: Factor) -> int:
    """Evaluate a factor on the captured shapes."""
    if isinstance(factor, int):
        return factor
    shape = shape_of(factor.node)
    return math.prod(shape) if isinstance(factor, Numel) else shape[factor.axis]


# ------------------------------------------------------------------ the formulas


def _operand(node: fx.Node, name: str) -> fx.Node:
    found = argument(node, name)
    assert isinstance(found, fx.Node)
    return found


def _last(node: fx.Node, back: int = 1) -> Length:
    return Length(node, len(shape_of(node)) - back)


@counts("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv2d_padding")
def _convolution(node: fx.Node) -> Work | None:
    """Each output element sums over one group's input channels and the kernel."""
    if argument(node, "transposed", False):
        return _transposed_convolution(node)
    return (_filtered(node, _operand(node, "weight")),)


@counts("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(node: fx.Node) -> Work:
    """Each *input* element is spread over one group's output channels and the kernel."""
    return (_filtered(_operand(node, "input"), _operand(node, "weight")),)


def _filtered(over: fx.Node, weight: fx.Node) -> Term:
    return (Numel(over), Length(weight, 1), math.prod(shape_of(weight)[2:]))


@counts("linear")
def _linear(node: fx.Node) -> Work | None:
    weight = _operand(node, "weight")
    return ((Numel(node), Length(weight, 1)),) if len(shape_of(weight)) == 2 else None


@counts("addmm", "baddbmm")
def _added_product(node: fx.Node) -> Work:
    left = _operand(node, "mat1" if operator_name(node) == "addmm" else "batch1")
    return ((Numel(node), _last(left)),)


@counts("matmul", "mm", "bmm", "__matmul__")
def _matmul(node: fx.Node) -> Work | None:
    """Each output element is a sum over the contracted axis.

    Matrix times vector is left to ``uncounted``: torch's own counter has no formula for it either.
    """
    left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    ranks = len(shape_of(left)), len(shape_of(right))
    if ranks[1] == 1 or ranks == (1, 2):
        return None
    return ((Numel(node), _last(left)),)


@counts("scaled_dot_product_attention")
def _attention(node: fx.Node) -> Work:
    """Queries times keys, then weights times values; a mask saves nothing, as torch counts it."""
    keys = _last(_operand(node, "key"), back=2)
    return ((Numel(_operand(node, "query")), keys), (Numel(node), keys))


@counts("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(node: fx.Node) -> Work | None:
    """Each matrix once per step of each sample."""
    x, weights = _operand(node, "input"), argument(node, "params")
    if len(shape_of(x)) != 3 or not isinstance(weights, list | tuple):  # packed sequences
        return None
    matrices = [w for w in weights if isinstance(w, fx.Node) and len(shape_of(w)) == 2]
    return tuple((Length(x, 0), Length(x, 1), Numel(matrix)) for matrix in matrices)


@counts("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(node: fx.Node) -> Work:
    return tuple((Length(_operand(node, "input"), 0), Numel(_operand(node, name))) for name in ("w_ih", "w_hh"))


@counts("einsum")
def _einsum(node: fx.Node) -> Work:
    """A product over all letters; of other forms, what torch decomposes them into, found on empty tensors."""
    letters = [(letter, Length(o, axis)) for o, term in einsum_operands(node) for axis, letter in enumerate(term)]
    names, out = [letter for letter, _ in letters], str(node.args[0]).partition("->")[2]
    if len(einsum_operands(node)) == 2 and any(names.count(each) == 2 and each not in out for each in names):
        kept = {each: length for each, length in letters if each in out or names.count(each) == 2}
        return (tuple(kept.values()),)
    equation, operands = node.args[0], node.args[1]
    assert isinstance(operands, list | tuple)
    empty = [torch.empty(shape_of(o), device="meta") for o in operands if isinstance(o, fx.Node)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.einsum(equation, *empty)
    return ((counter.get_total_flops() // 2,),)
