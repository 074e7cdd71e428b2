"""Costs as functions of the group widths: exact, for arrays of candidates, without building networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
from torch import nn

from convwright.architecture import Architecture
from convwright.architecture.labels import Value
from convwright.cost.counts import METRICS, weight_tensors
from convwright.cost.forms import Basis, Form, FormMaker, Ints, Peak, Polynomial
from convwright.cost.memory import TensorStorage, done_once, live_at_births, storages
from convwright.cost.work import Factor, Numel, work_of
from convwright.errors import BudgetError, did_you_mean

Widths = npt.ArrayLike | Mapping[str, npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class CostModel:
    """The costs of one network for any widths of its free channel groups, per sample.

    Widths are given as an integer array of shape (G,) or (n, G), with one column per free group in the
    order of ``groups``, or as a mapping from group names to integers or arrays of shape (n,); groups left
    out keep their size. A width must be a positive multiple of its group's ``step``. Groups that are
    ``tied`` must be scaled in proportion by the caller: other widths are no buildable network, and their
    costs mean nothing. A tied group may also vanish (0): of two equal halves cut from several
    groups, one group can take the whole.

    Attributes:
        groups: names of the free groups: the columns.
        sizes: their present sizes, shape (G,).
        steps: what their widths must be multiples of, shape (G,).
        least: the smallest widths they can have, shape (G,).

    Examples:
        >>> import convwright as cw
        >>> model = cw.read("zoo:resnet20").cost_model()
        >>> model.macs({"layer1.0.conv1": 8}) < model.macs({})
        True
    """

    groups: tuple[str, ...]
    sizes: Ints
    steps: Ints
    least: Ints
    frozen: dict[str, str] = field(repr=False)
    _costs: dict[str, Peak] = field(repr=False)  # by the names that budgets use
    _arch: Architecture = field(repr=False)

    @classmethod
    def of(cls, arch: Architecture) -> CostModel:
        """Make the cost model of a network."""
        sizes = FormMaker(arch.channels)
        macs = _macs(arch, sizes)
        params, weight_bytes = _weights(arch, sizes)
        basis = Basis(sizes.units, chain(*(each.terms for each in (macs, params, weight_bytes))))
        return cls(
            groups=tuple(g.name for g in arch.free_groups),
            sizes=np.array([g.size for g in arch.free_groups], dtype=np.int64),
            steps=np.array([g.step for g in arch.free_groups], dtype=np.int64),
            least=np.array([0 if g.tied else g.step for g in arch.free_groups], dtype=np.int64),
            frozen={g.name: g.reason for g in arch.groups if g.frozen},
            _costs={
                "macs": Peak(basis, [macs], arch.inputs.batch),
                "params": Peak(basis, [params]),
                "weights": Peak(basis, [weight_bytes]),
            },
            _arch=arch,
        )

    @cached_property
    def _least(self) -> Peak:
        """The least that activations need: not every question asks for it."""
        return self._peak(storages(self._arch.capture))

    @cached_property
    def _eager(self) -> Peak:
        """What eager PyTorch holds, from an execution of the network's code."""
        return self._peak(self._arch.held)

    def _peak(self, found: tuple[TensorStorage, ...]) -> Peak:
        sizes = FormMaker(self._arch.channels)
        moments = _moments(self._arch, sizes, found)
        basis = Basis(sizes.units, chain(*(moment.terms for moment in moments)))
        return Peak(basis, moments, self._arch.inputs.batch)

    def macs(self, widths: Widths) -> Ints | int:
        """Return the multiply-accumulates, shape (n,), or one integer for one candidate.

        Raises:
            BudgetError: if a name, a shape or a width is wrong.
        """
        return self._evaluate("macs", widths=widths)["macs"]

    def params(self, widths: Widths) -> Ints | int:
        """Return the parameters, shared ones once; as ``macs``."""
        return self._evaluate("params", widths=widths)["params"]

    def weight_bytes(self, widths: Widths) -> Ints | int:
        """Return the bytes of the state dict; as ``macs``."""
        return self._evaluate("weights", widths=widths)["weights"]

    def activation_bytes(self, widths: Widths) -> Ints | int:
        """Return the least peak bytes of input and activations, each freed after its last use; as ``macs``."""
        return self._evaluate("least", widths=widths)["least"]

    def eager_activation_bytes(self, widths: Widths) -> Ints | int:
        """Return the peak bytes that eager PyTorch holds, by which budgets are judged; as ``macs``."""
        return self._evaluate("activations", widths=widths)["activations"]

    def costs(self, widths: Widths, metrics: Sequence[str] = METRICS) -> dict[str, Ints | int]:
        """Return costs by the names that budgets use: macs, params, activations (eager), weights."""
        return self._evaluate(*metrics, widths=widths)

    # -------------------------------------------------------------- reading widths

    def _evaluate(self, *names: str, widths: Widths) -> dict[str, Ints | int]:
        table, single = self._table(widths)
        peaks = [self._costs.get(name) or (self._least if name == "least" else self._eager) for name in names]
        results = {name: peak(table) for name, peak in zip(names, peaks, strict=True)}
        return {name: int(result[0]) if single else result for name, result in results.items()}

    def _table(self, widths: Widths) -> tuple[Ints, bool]:
        """Return the units of each candidate, shape (n, G), and whether it is a single one."""
        given = self._columns(widths) if isinstance(widths, Mapping) else np.asarray(widths)
        array = _integers(given)
        if array.ndim not in (1, 2) or array.shape[-1] != len(self.groups):
            raise BudgetError(
                f"widths have the shape {array.shape}; expected (n, {len(self.groups)}) or "
                f"({len(self.groups)},): one column per free group."
            )
        table = np.atleast_2d(array)
        self._check(table)
        return table // self.steps, array.ndim == 1

    def _columns(self, widths: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.generic]:
        self._check_names(widths)
        columns = [np.asarray(widths.get(n, s)) for n, s in zip(self.groups, self.sizes, strict=True)]
        try:
            return np.stack(np.broadcast_arrays(*columns), axis=-1) if columns else np.zeros(0, int)
        except ValueError as error:
            shapes = ", ".join(sorted({str(c.shape) for c in columns}))
            raise BudgetError(f"the widths of the groups have different lengths: {shapes}.") from error

    def _check_names(self, widths: Mapping[str, npt.ArrayLike]) -> None:
        for name in widths:
            if name in self.frozen:
                raise BudgetError(f"the width of {name} cannot change: {self.frozen[name]}.")
            if name not in self.groups:
                hint = did_you_mean(name, self.groups)
                raise BudgetError(f"no free channel group is called {name!r}.{hint}")

    def _check(self, table: Ints) -> None:
        wrong = (table < self.least) | (table % self.steps != 0)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise BudgetError(
                f"{table[row, column]} is no width for the group {self.groups[column]}; it must be "
                f"a positive multiple of {self.steps[column]}."
            )


def _integers(array: npt.NDArray[np.generic]) -> Ints:
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    whole = array.astype(np.int64) if array.dtype.kind == "f" and np.isfinite(array).all() else None
    if whole is None or (whole != array).any():
        raise BudgetError("widths must be whole numbers.")
    return whole


# ------------------------------------------------------------------ the polynomials


def _value(arch: Architecture, node: str, output: int | None = None) -> Value:
    value = arch.channels.follower.values[node]
    return value[output or 0] if isinstance(value, list) else value


def _macs(arch: Architecture, sizes: FormMaker) -> Polynomial:
    """Multiply-accumulates of the whole batch, with work on weights counted once per sample."""
    total = Polynomial()
    once = done_once(arch.capture)
    for node in arch.capture.graph.nodes:
        work = work_of(node) if node.op == "call_function" else None
        times = arch.inputs.batch if node.name in once else 1
        for term in work or ():
            total.add([f for factor in term for f in _forms(arch, sizes, factor)], times)
    return total


def _forms(arch: Architecture, sizes: FormMaker, factor: Factor) -> list[Form]:
    if isinstance(factor, int):
        return [Form(factor)]
    value = _value(arch, factor.node.name)
    return sizes.numel(value) if isinstance(factor, Numel) else [sizes.length(value, factor.axis)]


def _weights(arch: Architecture, sizes: FormMaker) -> tuple[Polynomial, Polynomial]:
    """Return the numbers of parameters, and of bytes of parameters and buffers."""
    params, weight_bytes = Polynomial(), Polynomial()
    names = _names_in_graph(arch)
    for name, tensor in weight_tensors(arch.model).items():
        forms = sizes.parameter(names.get(id(tensor), name), tensor.shape)
        weight_bytes.add(forms, tensor.element_size())
        if isinstance(tensor, nn.Parameter):
            params.add(forms)
    return params, weight_bytes


def _names_in_graph(arch: Architecture) -> dict[int, str]:
    """Return the name under which the graph *uses* each tensor: a shared one has several."""
    used = {arch.capture.tensors.get(n.name) for n in arch.capture.graph.nodes if n.users}
    state = arch.model.state_dict(keep_vars=True)
    return {id(tensor): name for name, tensor in state.items() if name in used}


def _moments(arch: Architecture, sizes: FormMaker, found: tuple[TensorStorage, ...]) -> list[Polynomial]:
    """Return the bytes that are live whenever memory is taken (of the whole batch, as ``_macs``)."""
    once = done_once(arch.capture)
    factors = [
        sizes.numel(_value(arch, s.node, s.output)) if s.node else [Form(length) for length in s.shape] for s in found
    ]
    times = [s.itemsize * (arch.inputs.batch if s.node in once else 1) for s in found]
    moments = []
    for live in live_at_births(found):
        total = Polynomial()
        for i in live:
            total.add(factors[i], times[i])
        moments.append(total)
    return moments
