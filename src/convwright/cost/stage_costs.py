"""Costs as functions of widths, repeated blocks and resolution together: exact, without building networks.

Every product of sizes that a network's cost is made of belongs to one operator or one parameter. Widths change its
factors; the resolution changes how many positions its operator works on; a block that is repeated n times has its
products n times. So one reading of a network at one resolution gives its costs everywhere::

    MACs = sum over products of  (1 + copies of its block) * positions at the resolution * factor * factor * ...

Positions are followed by executing convolutions, pools and whatever leaves maps as they are on tensors without memory.
Where another operator is met, into which sizes may be written, the network is read anew at that resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from convwright.architecture import Architecture, read
from convwright.architecture.capture.graph import operator_name, shape_of
from convwright.architecture.flow import Block
from convwright.architecture.layers import kind_of
from convwright.cost.cost_model import CostModel, _forms, _names_in_graph
from convwright.cost.counts import weight_tensors
from convwright.cost.forms import Basis, FormMaker, Ints, Monomial, Products, split
from convwright.cost.memory import done_once
from convwright.cost.work import Numel, work_of
from convwright.errors import BudgetError, EditError, ReadError

Side = tuple[int, ...]
_SLIDING = ("conv1d", "conv2d", "conv3d", "max_pool", "avg_pool", "adaptive_avg_pool")
_ALIKE = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias",
                    "batch_norm", "group_norm", "instance_norm", "mean", "amax", "cat", "concat"})  # fmt: skip
_ALIKE_KINDS = frozenset({"activation", "elementwise"})


@dataclass(frozen=True)
class _Term:
    """One product: of a coefficient, forms, and the positions of the value ``over``, in a repeated block or in none."""

    coefficient: int
    forms: Monomial
    block: int
    positions: int = 1
    over: str | None = None


class _FormProducts:
    """Sums of products of forms, each in a repeated block or in none."""

    def __init__(self, basis: Basis, terms: Sequence[_Term]) -> None:
        self.basis = basis
        self.products = Products(basis, [term.forms for term in terms])
        self.coefficients = np.array([t.coefficient * t.positions for t in terms], np.int64)
        self.blocks = np.array([t.block for t in terms], np.int64)

    def __call__(self, units: Ints, copies: Ints) -> int:
        """Return the sum for a candidate: units (1, G), further copies of each repeated block (1, B)."""
        times = np.append(copies[0] + 1, 1)[self.blocks]  # block -1: the last one
        return int((self.products(self.basis.variables(units))[0] * self.coefficients * times).sum())


@dataclass(frozen=True, eq=False)
class StageCosts:
    """MACs and parameters of one network for any widths, copies of blocks, and resolution; per sample.

    Attributes:
        model: the cost model of the widths, which checks them.
        blocks: names of the blocks that may be repeated (or, with -1 copies, be absent), columns of ``copies``.
        side: the spatial size that the network was read with.

    Examples:
        >>> import convwright as cw
        >>> from convwright.cost.stage_costs import StageCosts
        >>> costs = StageCosts.of(cw.read("zoo:resnet20"), ("layer2.1",))
        >>> deeper = cw.read("zoo:resnet20").apply(cw.AddBlock("layer2.1", copies=2), cw.Resolution(24)).profile()
        >>> costs.costs({}, {"layer2.1": 2}, 24) == {"macs": deeper.macs, "params": deeper.params}
        True
    """

    model: CostModel
    blocks: tuple[str, ...]
    side: Side
    arch: Architecture = field(repr=False)
    _params: _FormProducts = field(repr=False)
    _terms: tuple[_Term, ...] = field(repr=False)
    _readings: dict[Side, _FormProducts | str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, arch: Architecture, blocks: Sequence[str] = ()) -> StageCosts:
        """Read the products of a network.

        Args:
            arch: the network.
            blocks: names of blocks that may be repeated; none inside another.

        Raises:
            EditError: there is no block of a name.
        """
        found = [arch.block(name) for name in blocks]
        sizes = FormMaker(arch.channels)
        terms, params = _work_terms(arch, sizes, found), _parameter_terms(arch, sizes, found)
        basis = Basis(sizes.units, [term.forms for term in (*terms, *params)])
        side = tuple(arch.example_input.shape[2:])
        return cls(CostModel.of(arch), tuple(blocks), side, arch, _FormProducts(basis, params), tuple(terms))

    def costs(self, widths: Mapping[str, int], copies: Mapping[str, int], resolution: int | Side) -> dict[str, int]:
        """Return ``macs`` and ``params`` of one candidate.

        Args:
            widths: sizes of free groups by name; those left out stay.
            copies: copies of each block beyond the one that is there, by name; -1: it is absent.
            resolution: height and width, as one number or two.

        Raises:
            BudgetError: a width, a name or a number is wrong, or the network does not take this resolution.
        """
        unknown = [name for name in copies if name not in self.blocks]
        if unknown:
            raise BudgetError(f"{unknown[0]} is none of the blocks that may be repeated: {', '.join(self.blocks)}.")
        self.model._check_names(widths)
        sizes = zip(self.model.groups, self.model.sizes.tolist(), strict=True)
        row = np.array([[widths.get(name, size) for name, size in sizes]], np.int64)
        self.model._check(row)
        counts = np.array([[copies.get(name, 0) for name in self.blocks]], np.int64)
        if counts.min(initial=0) < -1:
            raise BudgetError(f"a block has {counts.min()} further copies; -1 takes it out, and no more can go.")
        reading, units = self._reading(resolution), row // self.model.steps
        if isinstance(reading, str):
            raise BudgetError(reading)
        return {"macs": reading(units, counts) // self.arch.inputs.batch, "params": self._params(units, counts)}

    def refusal(self, resolution: int | Side) -> str:
        """Return why the network does not take a resolution; empty if it does."""
        found = self._reading(resolution)
        return found if isinstance(found, str) else ""

    def _reading(self, resolution: int | Side) -> _FormProducts | str:
        side = (resolution,) * len(self.side) if isinstance(resolution, int) else tuple(resolution)
        if side not in self._readings:
            self._readings[side] = self._found(side)
        return self._readings[side]

    def _found(self, side: Side) -> _FormProducts | str:
        if len(side) != len(self.side) or min(side) < 1:
            return f"a resolution of {side} does not suit inputs of {self.side}."
        shapes = _followed(self.arch, side)
        if shapes is not None:
            moved = ((t, shapes.get(t.over or "")) for t in self._terms)
            terms = [t if v is None else replace(t, positions=math.prod(v.shape[2:])) for t, v in moved]
            return _FormProducts(self._params.basis, terms)
        try:
            there = read(self.arch.model, (*self.arch.example_input.shape[:2], *side))
            sizes = FormMaker(there.channels)
            terms = _work_terms(there, sizes, [there.block(name) for name in self.blocks])
        except (ReadError, EditError) as error:
            return f"{self.arch.source} does not take inputs of {'x'.join(map(str, side))}: {error}"
        if tuple(group.name for group in there.free_groups) != self.model.groups:
            return f"{self.arch.source} has other channel groups for inputs of {'x'.join(map(str, side))}."
        return _FormProducts(Basis(sizes.units, [term.forms for term in terms]), terms)


def _work_terms(arch: Architecture, sizes: FormMaker, blocks: Sequence[Block]) -> list[_Term]:
    """Return the products of the multiply-accumulates; of convolutions with the positions apart."""
    owner = {arch.flow.nodes[n].name: i for i, block in enumerate(blocks) for n in arch.flow.span(block)}
    batch, once = arch.inputs.batch, done_once(arch.capture)
    terms = []
    for node in arch.capture.graph.nodes:
        for work in (work_of(node) if node.op == "call_function" else None) or ():
            constant, varying = split(form for factor in work for form in _forms(arch, sizes, factor))
            over = next((f.node for f in work if isinstance(f, Numel)), None) if kind_of(node) == "conv" else None
            positions = math.prod(shape_of(over)[2:]) if over is not None else 1
            times = constant * (batch if node.name in once else 1) // positions
            name = over.name if over is not None else None
            terms.append(_Term(times, varying, owner.get(node.name, -1), positions, name))
    return terms


def _parameter_terms(arch: Architecture, sizes: FormMaker, blocks: Sequence[Block]) -> list[_Term]:
    terms = []
    names = _names_in_graph(arch)
    for name, tensor in weight_tensors(arch.model).items():
        if isinstance(tensor, nn.Parameter):
            constant, varying = split(sizes.parameter(names.get(id(tensor), name), tensor.shape))
            holders = (i for i, b in enumerate(blocks) if any(name.startswith(f"{path}.") for path in b.modules))
            terms.append(_Term(constant, varying, next(holders, -1)))
    return terms


# ------------------------------------------------------------------ positions at another resolution


def _followed(arch: Architecture, side: Side) -> dict[str, Tensor] | None:
    """Return the values that change at another resolution, without memory; None where an operator may hold sizes."""
    changed: dict[str, Tensor] = {}

    def there(node: fx.Node) -> Tensor:
        return changed.get(node.name, _empty(node, shape_of(node)))

    for node in arch.capture.graph.nodes:
        if node.name in arch.capture.inputs:
            changed[node.name] = _empty(node, (*shape_of(node)[:2], *side))
        elif node.op == "call_function" and any(n.name in changed for n in node.all_input_nodes):
            if not _holds_no_sizes(node):
                return None
            args, options = (fx.node.map_arg(given, there) for given in (node.args, node.kwargs))
            try:
                value = node.target(*args, **options)
            except (RuntimeError, ValueError, IndexError):  # such as a table of positions: reading anew tells why
                return None
            if min(value.shape) < 1:
                return None
            if tuple(value.shape) != shape_of(node):
                changed[node.name] = value
    return changed


def _empty(node: fx.Node, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=node.meta["val"].dtype, device="meta")


def _holds_no_sizes(node: fx.Node) -> bool:
    """Whether an operator's arguments do not depend on the resolution: padding, for one, may have been computed."""
    name = operator_name(node)
    return (
        "indices" not in name
        and "pad" not in name
        and (name.startswith(_SLIDING) or name in _ALIKE or kind_of(node) in _ALIKE_KINDS)
    )
