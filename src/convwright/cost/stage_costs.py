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
from convwright.cost.cost_model import CostModel, _names_in_graph, work_products
from convwright.cost.counts import weight_tensors
from convwright.cost.forms import Basis, Form, FormMaker, Peak, Polynomial
from convwright.errors import BudgetError, EditError, ReadError

Side = tuple[int, ...]


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
    _params: Peak = field(repr=False)
    _readings: dict[Side, Peak | str] = field(repr=False)  # MACs, or why there are none

    @classmethod
    def of(cls, arch: Architecture, blocks: Sequence[str] = ()) -> StageCosts:
        """Read the products of a network.

        Args:
            arch: the network.
            blocks: names of blocks that may be repeated; none inside another.

        Raises:
            EditError: there is no block of a name.
        """
        side = tuple(arch.example_input.shape[2:])
        return cls(CostModel.of(arch), tuple(blocks), side, arch, _params(arch, blocks), {side: _macs(arch, blocks)})

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
        reading = self._reading(resolution)
        if isinstance(reading, str):
            raise BudgetError(reading)
        units = np.concatenate([row // self.model.steps, counts], axis=1)
        return {"macs": int(reading(units)[0]), "params": int(self._params(units)[0])}

    def refusal(self, resolution: int | Side) -> str:
        """Return why the network does not take a resolution; empty if it does."""
        found = self._reading(resolution)
        return found if isinstance(found, str) else ""

    def _reading(self, resolution: int | Side) -> Peak | str:
        side = (resolution,) * len(self.side) if isinstance(resolution, int) else tuple(resolution)
        if side not in self._readings:
            self._readings[side] = self._found(side)
        return self._readings[side]

    def _found(self, side: Side) -> Peak | str:
        if len(side) != len(self.side) or min(side) < 1:
            return f"a resolution of {side} does not suit inputs of {self.side}."
        try:
            there = self._read_at(side)
            found = _macs(there, self.blocks)
        except (ReadError, EditError) as error:
            return f"{self.arch.source} does not take inputs of {'x'.join(map(str, side))}: {error}"
        if tuple(group.name for group in there.free_groups) != self.model.groups:
            return f"{self.arch.source} has other channel groups for inputs of {'x'.join(map(str, side))}."
        return found

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


# ------------------------------------------------------------------ the polynomials


def _macs(arch: Architecture, blocks: Sequence[str]) -> Peak:
    owner = {arch.flow.nodes[n].name: i for i, name in enumerate(blocks) for n in arch.flow.span(arch.block(name))}
    sizes, total = FormMaker(arch.channels), Polynomial()
    for node, forms, times in work_products(arch, sizes):
        total.add((*forms, *_repeated(sizes, owner.get(node))), times)
    return _compiled(sizes, total, blocks, arch.inputs.batch)


def _params(arch: Architecture, blocks: Sequence[str]) -> Peak:
    modules = [arch.block(name).modules for name in blocks]
    sizes, total, names = FormMaker(arch.channels), Polynomial(), _names_in_graph(arch)
    for name, tensor in weight_tensors(arch.model).items():
        if isinstance(tensor, nn.Parameter):
            holders = (i for i, paths in enumerate(modules) if any(name.startswith(f"{path}.") for path in paths))
            forms = sizes.parameter(names.get(id(tensor), name), tensor.shape)
            total.add((*forms, *_repeated(sizes, next(holders, None))))
    return _compiled(sizes, total, blocks)


def _repeated(sizes: FormMaker, block: int | None) -> tuple[Form, ...]:
    """Return one more than the further copies of a block, as a length: they are a group of their own."""
    return () if block is None else (Form(1, ((len(sizes.units) + block, 1),)),)


def _compiled(sizes: FormMaker, total: Polynomial, blocks: Sequence[str], batch: int = 1) -> Peak:
    return Peak(Basis([*sizes.units, *[1] * len(blocks)], total.terms), [total], batch)
