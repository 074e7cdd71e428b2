"""Costs as functions of widths, repeated blocks and resolution together: exact, without building networks.

Every product of sizes that a network's cost is made of belongs to one operator or one parameter. Widths change its
factors; a block that is repeated n times has its products n times. So one reading of a network at a resolution gives
its costs there for all widths and copies::

    MACs = sum over products of  (1 + copies of its block) * factor * factor * ...

Each resolution that is asked for is read once, on tensors without memory where the network's code allows that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from convwright.architecture import Architecture
from convwright.architecture.flow import Block
from convwright.cost.cost_model import CostModel, _names_in_graph, work_products
from convwright.cost.counts import weight_tensors
from convwright.cost.forms import Basis, FormMaker, Ints, Monomial, Products, split
from convwright.errors import BudgetError, EditError, ReadError

Side = tuple[int, ...]


@dataclass(frozen=True)
class _Term:
    """One product of a coefficient and forms, in a repeated block or in none."""

    coefficient: int
    forms: Monomial
    block: int


class _FormProducts:
    """Sums of products of forms, each in a repeated block or in none."""

    def __init__(self, basis: Basis, terms: Sequence[_Term]) -> None:
        self.basis = basis
        self.products = Products(basis, [term.forms for term in terms])
        self.coefficients = np.array([t.coefficient for t in terms], np.int64)
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
    _readings: dict[Side, _FormProducts | str] = field(repr=False)  # MACs, or why there are none

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
        readings: dict[Side, _FormProducts | str] = {side: _FormProducts(basis, terms)}
        return cls(CostModel.of(arch), tuple(blocks), side, arch, _FormProducts(basis, params), readings)

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
        try:
            there = self._read_at(side)
            sizes = FormMaker(there.channels)
            terms = _work_terms(there, sizes, [there.block(name) for name in self.blocks])
        except (ReadError, EditError) as error:
            return f"{self.arch.source} does not take inputs of {'x'.join(map(str, side))}: {error}"
        if tuple(group.name for group in there.free_groups) != self.model.groups:
            return f"{self.arch.source} has other channel groups for inputs of {'x'.join(map(str, side))}."
        return _FormProducts(Basis(sizes.units, [term.forms for term in terms]), terms)

    def _read_at(self, side: Side) -> Architecture:
        example = self.arch.example_input.new_zeros((*self.arch.example_input.shape[:2], *side))
        hollow = self.arch.evolved(model=self._hollow, example_input=example.to("meta"), given=None)
        try:
            hollow.capture  # noqa: B018 - executes its code
        except ReadError:  # its code may read values
            return self.arch.evolved(example_input=example, given=None)
        return hollow

    @cached_property
    def _hollow(self) -> nn.Module:
        """The network without memory."""
        return copy.deepcopy(self.arch.model).to("meta")


def _work_terms(arch: Architecture, sizes: FormMaker, blocks: Sequence[Block]) -> list[_Term]:
    """Return the products of the multiply-accumulates."""
    owner = {arch.flow.nodes[n].name: i for i, block in enumerate(blocks) for n in arch.flow.span(block)}
    terms = []
    for name, forms, times in work_products(arch, sizes):
        constant, varying = split(forms)
        terms.append(_Term(constant * times, varying, owner.get(name, -1)))
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
