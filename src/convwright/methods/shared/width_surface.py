"""Widths on a budget's surface: proportional to what is wanted, within all limits, and using them up.

For any wanted widths there is one common factor at which the network just fits its budget. Whole channels leave some
of the budget over; it is spent on the widths that fell furthest short of what was wanted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convwright.architecture import Architecture
from convwright.cost.budget import Limits, human
from convwright.cost.cost_model import CostModel
from convwright.cost.forms import Ints
from convwright.edits import Width, solve
from convwright.edits.constraints import ENOUGH, Divisor, DivisorLike, width_range
from convwright.edits.surgery import MOST_CHANNELS
from convwright.errors import BudgetError, ConvwrightError, EditError
from convwright.methods.shared.uniform_widths import BETTER, solved

Widths = dict[str, int]
Shape = Mapping[str, float]

FULL = 0.99  # share of the tightest limit from which nothing more is added
_FULL_ESTIMATED = 0.97  # the same for estimates, such as latency: finer than this is noise
_HALVINGS = 24  # bisections of the scale: finer than one channel in ten million
_SMALLEST, _LARGEST = 1e-6, 1e4  # scales at which a bracket is given up: what is limited does not answer to widths
_OFF = 1.15  # to use up the budget, a width may be so many times what was wanted, or as much below, and one step
_MOST_PAIRS = 200  # families up to which exchanges of channels between two of them are tried
_FEW = 6  # families up to which all combinations of nearby widths are tried
_ROUNDS = 400  # steps of filling; each uses more of the budget than the one before


def own_costs(arch: Architecture) -> Limits:
    """Return a network's own MACs and parameters as limits."""
    profile = arch.profile()
    return Limits({"macs": profile.macs, "params": profile.params})


@dataclass(frozen=True)
class Family:
    """Channel groups with one width among them: one group, or several that are tied in size.

    Attributes:
        name: The group that stands for all: the largest. Widths of a family are its widths.
        groups: All of them.
        size: Its present width.
        step: Widths are multiples of this.
        least: Smallest width that may be proposed.
        most: Largest.
    """

    name: str
    groups: tuple[str, ...]
    size: int
    step: int
    least: int
    most: int

    @property
    def tied(self) -> bool:
        """Whether several groups change together."""
        return len(self.groups) > 1

    def rounded(self, width: float) -> int:
        """Return the nearest width that may be proposed."""
        return min(max(int(width / self.step + 0.5) * self.step, self.least), self.most)


@dataclass(frozen=True, eq=False)
class Place:
    """A point on the surface.

    Attributes:
        widths: Width by family.
        shape: The wanted widths at the scale that fits, before rounding.
        use: Share of the tightest limit that is used.
    """

    widths: Widths
    shape: dict[str, float]
    use: float


class Surface:
    """The networks that differ from one in width only, and a budget.

    Args:
        arch: The network.
        limits: The budget in numbers.
        divisor: Widths are multiples of this, too; groups that are smaller than it keep their own step. ``auto``: of
            what kernels like.
        least: Smallest width of a group; None: one step.
        most: Largest; None: none.
        checked: Refuse limits that even the smallest widths break.

    Raises:
        ConvwrightError: No group is free to change, or none has a width between `least` and `most`.
        BudgetError: Even the smallest widths break a limit.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: Limits,
        *,
        divisor: DivisorLike = 1,
        least: int | None = None,
        most: int | None = None,
        checked: bool = True,
    ) -> None:
        self.arch, self.limits = arch, limits
        self.model = CostModel.of(arch)
        self.full = _FULL_ESTIMATED if limits.estimates else FULL
        self.divisor, self._bounds = Divisor.of(divisor), (least, most)
        self.families = self._made()
        self._places: dict[tuple[str, int], dict[str, int]] = {}
        self._column = {name: i for i, name in enumerate(self.model.groups)}
        for metric, by in self._excess().items() if checked else ():
            limit = self.limits.limits[metric]
            bound = "" if least is None else f" of {least} channels (min_width); allow less"
            raise BudgetError(
                f"{metric}<={human(limit, metric)} cannot be met: the smallest widths{bound or ' of all groups'} need "
                f"{human(limit + by, metric)}. Raise the budget"
            )

    def _made(self) -> tuple[Family, ...]:
        """Return the families, in multiples that are as fine as the bounds need."""
        while True:
            try:
                return tuple(_families(self.arch, self.divisor, *self._bounds))
            except ConvwrightError:
                if self.divisor.finer is None:
                    raise
                self.divisor = self.divisor.finer

    @cached_property
    def finer(self) -> Surface | None:
        """The same in finer multiples, where ``auto`` chose these."""
        least, most = self._bounds
        if self.divisor.finer is None:
            return None
        return Surface(self.arch, self.limits, divisor=self.divisor.finer, least=least, most=most, checked=False)

    def _excess(self) -> Mapping[str, int]:
        """Return by how much even the smallest widths break the limits."""
        excess = self.limits.excess(self.costs({f.name: f.least for f in self.families}))
        return self.finer._excess() if excess and self.finer is not None else excess

    # ------------------------------------------------------------------ sizes and costs

    def sizes(self, widths: Mapping[str, int]) -> Widths:
        """Return the size of every free group under the families' widths."""
        row = self._table([widths])[0]
        return dict(zip(self.model.groups, row.tolist(), strict=True))

    def costs(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the limited metrics under the families' widths."""
        return self.limits.costs(self.model, self.sizes(widths))

    def counted(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return MACs and parameters."""
        found = self.model.costs(self.sizes(widths), ("macs", "params"))
        return {metric: int(cost) for metric, cost in found.items()}

    def use(self, widths: Mapping[str, int]) -> float:
        """Return the share of the tightest limit that is used; above 1 it is broken."""
        return float(self.uses([widths])[0])

    def uses(self, rows: Sequence[Mapping[str, int]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return `use` of several sets of widths, shape (n,)."""
        table, limits = self._table(rows), self.limits.limits
        counted: Mapping[str, Ints | int]
        if self.limits.measures:
            sizes = (dict(zip(self.model.groups, row, strict=True)) for row in table.tolist())
            each = [self.limits.costs(self.model, row) for row in sizes]
            counted = {metric: np.array([costs[metric] for costs in each]) for metric in limits}
        else:
            counted = self.model.costs(table, list(limits))
        shares = [np.asarray(counted[metric]) / limit for metric, limit in limits.items()]
        return np.asarray(np.max(np.stack(shares), axis=0), dtype=np.float64)

    def _table(self, rows: Sequence[Mapping[str, int]]) -> Ints:
        """Return the sizes of all free groups for several sets of widths, shape (n, groups)."""
        table = np.tile(self.model.sizes, (len(rows), 1))
        for family in self.families:
            if not family.tied:
                table[:, self._column[family.name]] = [widths[family.name] for widths in rows]
                continue
            for i, widths in enumerate(rows):
                for name, size in self._placed(family, widths[family.name]).items():
                    table[i, self._column[name]] = size
        return table

    def _placed(self, family: Family, width: int) -> dict[str, int]:
        """Return the sizes of a tied family's groups near a width, the present ones where none fit; found once."""
        key = family.name, width
        if key not in self._places:
            near = [width + offset * family.step for offset in (0, -1, 1, -2, 2, -3, 3)]
            allowed = [size for size in near if family.least <= size <= family.most]
            found = (self._tried(family, size) for size in (*allowed, family.size))
            self._places[key] = next(sizes for sizes in found if sizes is not None)
        return self._places[key]

    def _tried(self, family: Family, size: int) -> dict[str, int] | None:
        """Return the sizes of a tied family, None where they do not fit or some would move the other way."""
        graph = self.arch.channels
        if size == family.size:
            return {name: graph.group(name).size for name in family.groups}
        try:
            units = solve(self.arch, [Width(family.name, size)]).units
        except EditError:
            return None
        if ((units - graph.units) * (size - family.size) < 0).any():
            return None
        return {name: int(units[graph.index[name]]) * graph.group(name).step for name in family.groups}

    def edits(self, widths: Mapping[str, int]) -> tuple[Width, ...]:
        """Return one edit per family that changes, in the network's order."""
        wanted = {f.name: self._placed(f, widths[f.name])[f.name] if f.tied else widths[f.name] for f in self.families}
        order = self.arch.channels.index
        changed = [Width(f.name, wanted[f.name]) for f in self.families if wanted[f.name] != f.size]
        return tuple(sorted(changed, key=lambda edit: order[edit.target]))

    def carried_out(self, widths: Mapping[str, int]) -> bool:
        """Return whether all edits at once give the sizes that were reckoned with family by family."""
        edits = self.edits(widths)
        if not edits or not any(f.tied for f in self.families):
            return True
        try:
            return solved(self.arch, edits) == self.sizes(widths)
        except EditError:
            return False

    # ------------------------------------------------------------------ the surface

    def project(self, wanted: Shape, target: float = 1.0) -> Place:
        """Return the widths in the wanted proportions that fit, and use what there is.

        Args:
            wanted: Widths by family; only their proportions count.
            target: Share of the budget that may be used, up to 1.

        Returns:
            Widths that use at most `target` of the tightest limit, and at least 99 % of that where steps and bounds
            allow, in finer multiples than those of ``auto`` where these use less than 97 %. Where even the
            smallest widths use more than `target`, these.

        Raises:
            BudgetError: Tied groups do not fit together at any scale.
        """
        place = self._projected(wanted, target)
        if ENOUGH * target <= place.use <= target or self.finer is None:
            return place
        finer = self.finer.project(wanted, target)
        return finer if place.use > target or place.use + BETTER < finer.use <= target else place

    def _projected(self, wanted: Shape, target: float) -> Place:
        scale = self._scale(wanted, target)
        for _ in range(60):
            shape = {f.name: min(max(wanted[f.name] * scale, f.least), f.most) for f in self.families}
            widths = self._filled(self._at(wanted, scale), shape, target)
            if self.carried_out(widths):
                return Place(widths, shape, self.use(widths))
            scale *= 0.97  # ties between families that only show when all change at once
        raise BudgetError(f"no widths of {self.arch.source} fit together near {self.limits.describe()}")

    def _at(self, wanted: Shape, scale: float) -> Widths:
        return {f.name: f.rounded(wanted[f.name] * scale) for f in self.families}

    def _scale(self, wanted: Shape, target: float) -> float:
        """Return the largest factor at which the wanted widths fit: bracketed by doubling, then bisected."""
        low, high = self._bracket(wanted, target)
        for _ in range(_HALVINGS):
            if self._at(wanted, low) == self._at(wanted, high):
                break
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(wanted, middle, target) else (low, middle)
        return low

    def _bracket(self, wanted: Shape, target: float) -> tuple[float, float]:
        """Return a factor that fits and one that does not; the same twice where a bound of all widths is met."""
        scale, fits = 1.0, self._fits(wanted, 1.0, target)
        edge = {f.name: f.most if fits else f.least for f in self.families}
        while self._at(wanted, scale) != edge and _SMALLEST < scale < _LARGEST:
            further = scale * 2 if fits else scale / 2
            if self._fits(wanted, further, target) != fits:
                return min(scale, further), max(scale, further)
            scale = further
        return scale, scale

    def _fits(self, wanted: Shape, scale: float, target: float) -> bool:
        return self.use(self._at(wanted, scale)) <= target

    def _filled(self, widths: Widths, shape: Shape, target: float) -> Widths:
        """Spend what is left over: on single families, by exchanges between two, or of few by all combinations."""
        used = self.use(widths)
        for _ in range(_ROUNDS):
            if not self.full * target > used:
                break
            better = (
                self._wider(widths, shape, used, target)
                or self._exchanged(widths, shape, used, target)
                or self._around(widths, shape, used, target)
            )
            if better is None:
                break
            widths, used = better
        return widths

    def _wider(self, widths: Widths, shape: Shape, used: float, target: float) -> tuple[Widths, float] | None:
        """Widen the family that falls furthest short of what was wanted, of those that fit and cost something."""
        grown = [f for f in self.families if widths[f.name] + f.step <= _ceiling(f, shape[f.name])]
        rows = [{**widths, f.name: widths[f.name] + f.step} for f in grown]
        uses = self.uses(rows).tolist() if rows else []
        fitting = [i for i in range(len(rows)) if used < uses[i] <= target]
        if not fitting:
            return None
        i = min(fitting, key=lambda i: widths[grown[i].name] / shape[grown[i].name])
        return rows[i], uses[i]

    def _exchanged(self, widths: Widths, shape: Shape, used: float, target: float) -> tuple[Widths, float] | None:
        """Widen one family and narrow another by a step each; the pair that uses most."""
        if len(self.families) > _MOST_PAIRS or self.limits.estimates:
            return None
        up = [f for f in self.families if widths[f.name] + f.step <= _ceiling(f, shape[f.name])]
        down = [f for f in self.families if widths[f.name] - f.step >= _floor(f, shape[f.name])]
        pairs = ((one, other) for one in up for other in down if one is not other)
        rows = [{**widths, u.name: widths[u.name] + u.step, d.name: widths[d.name] - d.step} for u, d in pairs]
        if not rows:
            return None
        uses = self.uses(rows)
        uses[uses > target] = 0.0
        best = int(np.argmax(uses))
        return (rows[best], float(uses[best])) if uses[best] > used else None

    def _around(self, widths: Widths, shape: Shape, used: float, target: float) -> tuple[Widths, float] | None:
        """Of few families, try all combinations near what was wanted: the closest that uses enough, or uses most."""
        families = self.families
        if len(families) > _FEW or self.limits.estimates or any(f.tied for f in families):
            return None
        choices = []  # the widths nearest to what was wanted, up to two steps either way
        for f in families:
            near = (f.rounded(shape[f.name]) + offset * f.step for offset in range(-2, 3))
            choices.append([w for w in near if _floor(f, shape[f.name]) <= w <= _ceiling(f, shape[f.name])])
        rows = [dict(zip(shape, row, strict=True)) for row in itertools.product(*choices)] or [widths]
        uses = self.uses(rows)
        uses[uses > target] = 0.0
        if uses.max() <= used:
            return None
        enough = np.flatnonzero(uses >= min(self.full * target, uses.max())).tolist()
        best = min(enough, key=lambda i: sum(math.log(rows[i][n] / shape[n]) ** 2 for n in shape))
        return rows[best], float(uses[best])


def _ceiling(family: Family, wanted: float) -> float:
    return min(family.most, wanted * _OFF + family.step)


def _floor(family: Family, wanted: float) -> float:
    return max(family.least, wanted / _OFF - family.step)


def _families(arch: Architecture, divisor: Divisor, least: int | None, most: int | None) -> Iterator[Family]:
    """Yield the families that can change, in the network's order; refuse where there is none, or none in the bounds."""
    if least is not None and most is not None and least > most:
        raise ConvwrightError(f"min_width={least} is above max_width={most}; give a smaller min_width")
    covered: set[str] = set()
    found = []
    for group in sorted(arch.free_groups, key=lambda g: -g.size):
        if group.name in covered:
            continue
        covered |= {group.name, *group.tied}
        allowed = width_range(arch.channels, group, divisor)
        if any(arch.channels.group(name).frozen for name in group.tied):
            continue
        step, low, high = allowed.multiple, allowed.least, allowed.most
        if not low == high == group.size:  # else there is nothing to choose
            low = max(low, math.ceil((least or 1) / step) * step)
            high = min(high, (most or MOST_CHANNELS) // step * step)
        if low > high:
            raise ConvwrightError(
                f"{group.name} has widths that are multiples of {step}: none lies from {least or 1} to {most} "
                "(min_width, max_width); widen these bounds"
            )
        found.append(Family(group.name, (group.name, *group.tied), group.size, step, low, high))
    if not found:
        reasons = dict.fromkeys(f"{g.name}: {g.reason or 'tied to frozen channels'}" for g in arch.groups)
        shown = "; ".join(list(reasons)[:6]) or "it has no channels"
        raise ConvwrightError(f"{arch.source} has no channel group whose width can change ({shown}).")
    order = arch.channels.index
    yield from sorted(found, key=lambda family: order[family.name])
