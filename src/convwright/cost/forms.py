"""Sizes as functions of the channel widths, and sums of their products.

Along an axis lie channels of one or more groups, and perhaps entries that are no channels. When the groups get
other widths, the axis gets the length ``constant + sum_g coefficient_g * units_g``: a *form*. Numbers of elements
are products of forms, and a cost is a sum of such products with integer coefficients: a *polynomial* in
the numbers of channel units. Everything is integer arithmetic, so every result is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from convwright.architecture import ChannelGraph
from convwright.architecture.labels import Value
from convwright.errors import BudgetError

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]  # integers held as int64, float64 or Python integers

_EXACT_IN_FLOAT = 2**53
_CHUNK = 4096  # candidates at a time: intermediate arrays stay in the processor's cache


@dataclass(frozen=True)
class Form:
    """The length of a run of labels, as a function of the groups' units.

    Attributes:
        constant: labels whose number does not change.
        shares: (free group, labels in it now) for each free group in the run.
    """

    constant: int
    shares: tuple[tuple[int, int], ...] = ()


Monomial = tuple[Form, ...]


@dataclass
class Polynomial:
    """A sum of products of forms, with integer coefficients."""

    terms: dict[Monomial, int] = field(default_factory=dict)

    def add(self, factors: Iterable[Form], coefficient: int = 1) -> None:
        """Add one product; constant factors join the coefficient."""
        forms = list(factors)
        constant = math.prod(form.constant for form in forms if not form.shares)
        key = tuple(sorted((form for form in forms if form.shares), key=lambda f: (f.shares, f.constant)))
        self.terms[key] = self.terms.get(key, 0) + coefficient * constant


class FormMaker:
    """Makes forms from the labels of one channel analysis.

    Attributes:
        graph: the channel analysis.
        columns: index of a group in the graph -> its column among the free groups.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        free = [i for i, group in enumerate(graph.groups) if not group.frozen]
        self.columns = {index: column for column, index in enumerate(free)}
        self.units = [graph.groups[index].units for index in free]
        self._known: dict[int, tuple[Tensor, Form]] = {}

    def run(self, labels: Tensor) -> Form:
        """Return how long a run of labels is."""
        if id(labels) not in self._known:  # the tensor is kept so that its id is not used again
            self._known[id(labels)] = (labels, self._counted(labels))
        return self._known[id(labels)][1]

    def _counted(self, labels: Tensor) -> Form:
        counts = self.graph.count(labels).tolist()
        shares = {self.columns[i]: n for i, n in enumerate(counts) if n and i in self.columns}
        return Form(sum(counts) - sum(shares.values()), tuple(sorted(shares.items())))

    def numel(self, value: Value) -> list[Form]:
        """Return the factors of a value's number of elements."""
        labelled: set[int] = set()
        counted = []
        for plane in value.planes:
            if not labelled & set(plane.axes):  # heads and channels folded into one axis: two planes on it
                labelled |= set(plane.axes)
                counted.append(self.run(plane.labels))
        rest = math.prod(size for axis, size in enumerate(value.shape) if axis not in labelled)
        return [Form(rest), *counted]

    def length(self, value: Value, axis: int) -> Form:
        """Return the length of one axis of a value."""
        if value.parameter is not None:
            return self.parameter_axis(value.parameter, axis, value.shape[axis])
        plane = value.plane_at(axis)
        if plane is None:
            return Form(value.shape[axis])
        labels = plane.labels
        for other in plane.axes:
            labels = labels if other == axis else labels.narrow(other, 0, 1)
        if len(plane.axes) > 1 and len(set(self.graph.channels_of(labels).tolist())) == 1:
            return Form(labels.numel())  # heads, of which each has every channel
        return self._counted(labels)

    def parameter_axis(self, name: str, axis: int, size: int) -> Form:
        """Return the length of one axis of a parameter or buffer."""
        labels = self.graph.follower.atoms.get((name, axis))
        return Form(size) if labels is None else self.run(labels)

    def parameter(self, name: str, shape: Sequence[int]) -> list[Form]:
        """Return the factors of a parameter's number of elements."""
        return [self.parameter_axis(name, axis, size) for axis, size in enumerate(shape)]


# ------------------------------------------------------------------ evaluation


class Basis:
    """The variables that polynomials are evaluated on: units, one, and rounded lengths.

    A form is linear in the units wherever each unit adds a whole number of labels. Where it does not
    (a constant slice of a group), its length is rounded as the edits round it, and is a variable itself.
    """

    def __init__(self, units: Sequence[int], monomials: Iterable[Monomial]) -> None:
        self.units = np.asarray(units, dtype=np.int64)
        forms = {form for monomial in monomials for form in monomial}
        rounded = [f for f in forms if any(count % self.units[group] for group, count in f.shares)]
        self.rounded = {f: i for i, f in enumerate(sorted(rounded, key=lambda f: f.shares))}
        self.size = len(units) + 1 + len(self.rounded)

    def row(self, form: Form) -> Ints:
        """Return a form as coefficients of the variables."""
        row = np.zeros(self.size, dtype=np.int64)
        if form in self.rounded:
            row[len(self.units) + 1 + self.rounded[form]] = 1
        else:
            row[len(self.units)] = form.constant
            for group, count in form.shares:
                row[group] = count // self.units[group]
        return row

    def variables(self, units: Ints) -> Ints:
        """Return the variables for candidates.

        Args:
            units: shape (n, G).

        Returns:
            Shape (n, G + 1 + R).
        """
        ones = np.ones((len(units), 1), dtype=np.int64)
        columns = [units, ones]
        for form in self.rounded:
            share: Numbers = sum((n * units[:, g] / self.units[g] for g, n in form.shares), np.zeros(1))
            columns.append(np.rint(share).astype(np.int64)[:, None] + form.constant)
        return np.concatenate(columns, axis=1)


class Products:
    """Products of forms, compiled: each different form is evaluated once."""

    def __init__(self, basis: Basis, monomials: Sequence[Monomial]) -> None:
        forms = [*dict.fromkeys(form for monomial in monomials for form in monomial), Form(1)]
        self.rows = np.stack([basis.row(form) for form in forms], axis=1)
        places, longest = {form: i for i, form in enumerate(forms)}, max(map(len, monomials), default=0)
        padded = [[places[f] for f in m] + [len(forms) - 1] * (longest - len(m)) for m in monomials]
        self.places = np.array(padded, dtype=np.int64).reshape(len(monomials), longest)

    def __call__(self, variables: Numbers) -> Numbers:
        """Evaluate for candidates, shape (n, V); returns shape (n, monomials) of the same type."""
        lengths = variables @ self.rows.astype(variables.dtype)
        found: Numbers = np.prod(lengths[:, self.places], axis=2, dtype=variables.dtype)
        return found


class Peak:
    """The largest of several compiled polynomials: memory at each moment, or a sum by itself."""

    def __init__(self, basis: Basis, moments: Sequence[Polynomial], divisor: int = 1) -> None:
        self.basis, self.divisor = basis, divisor
        monomials = list(dict.fromkeys(m for p in moments for m in p.terms))
        table = [[p.terms.get(m, 0) for m in monomials] for p in moments]
        shape = (len(moments), len(monomials))
        self.table = _undominated(np.array(table, dtype=np.int64).reshape(shape))
        self.products = Products(basis, monomials)

    def __call__(self, units: Ints) -> Ints:
        """Evaluate for candidates, shape (n, G); returns shape (n,)."""
        variables = self.basis.variables(units)
        most = self.products(variables.max(axis=0, initial=0)[None].astype(np.float64))
        exact = _number_type(float((most @ self.table.T).max(initial=0)))
        table = self.table.T.astype(exact)
        chunks = np.split(variables.astype(exact), range(_CHUNK, len(variables), _CHUNK))
        peaks = [(self.products(chunk) @ table).max(axis=1, initial=0) for chunk in chunks]
        return np.concatenate(peaks).astype(np.int64) // self.divisor


def _number_type(bound: float) -> type[np.float64] | type[np.int64]:
    """Choose floats where they hold every intermediate integer exactly: they multiply faster.

    All terms are non-negative, so no partial sum exceeds the value at the largest widths.
    """
    rounding = 1 - 1e-9  # of the bound itself
    if bound < _EXACT_IN_FLOAT * rounding:
        return np.float64
    if bound < 2**63 * rounding:
        return np.int64
    raise BudgetError(f"a cost of {bound:.1e} does not fit into 64 bits; give smaller widths.")


def _undominated(table: Ints) -> Ints:
    """Drop moments at which never more memory is live than at another one."""
    kept: list[Ints] = []
    for row in sorted(np.unique(table, axis=0), key=lambda r: -int(r.sum())):
        if not any(bool((row <= other).all()) for other in kept):
            kept.append(row)
    return np.array(kept, dtype=np.int64).reshape(len(kept), table.shape[1])
