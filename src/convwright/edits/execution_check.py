"""The execution check: which groups the user's own code allows to change.

Labels say which channels belong together; only running says whether ``forward`` bears other numbers. All free groups
are halved, then doubled, and the copy runs once. Where that fails, rehearsals look for a stored size that explains it.
If none does, bisection finds the groups at fault; they are frozen, with the failing line as reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from convwright.architecture import Architecture
from convwright.edits.constraints import DivisorLike
from convwright.edits.edit import Edit
from convwright.edits.fake_run import Repairs, TrialNetwork, UnrepairableError, repaired
from convwright.edits.proportional import proportional_widths
from convwright.edits.remap import recipe
from convwright.edits.width import UnrunnableWidthsError, Width, solve
from convwright.errors import EditError

_RATIOS = (0.5, 2.0)
_MOST_NEAR = 12  # groups at one place, that are tried together
_MOST_RUNS = 120  # rehearsals per ratio, before what is still unknown is frozen together


@dataclass(frozen=True)
class Checked:
    """What an execution check found.

    Attributes:
        architecture: the same network, with groups frozen that its code does not let change.
        stored: sizes stored on modules (``"module.attribute"``) that edits have to keep in step, and do.
        fixed: group name -> why it is frozen, for the groups that this check froze.
        rehearsed: whether all that had to be rehearsed was; it always is.
    """

    architecture: Architecture
    stored: tuple[str, ...]
    fixed: dict[str, str]
    rehearsed: bool = True


def check_execution(architecture: Architecture) -> Checked:
    """Shrink and grow all groups in copies, and freeze the groups that the network's code fixes.

    Args:
        architecture: the network; it is left as it is.
    """
    stored: dict[str, None] = {}
    fixed: dict[str, str] = {}
    for ratio in _RATIOS:
        trial = _Trial(architecture)
        edits = [e for e in proportional_widths(architecture, ratio) if e.target not in fixed]
        for target, reason in trial.culprits(edits).items():
            group = architecture.channels.group(target)
            fixed.update(dict.fromkeys((target, *group.tied), reason))
        stored.update(dict.fromkeys(trial.stored))
    if fixed:
        architecture = architecture.evolved(fixed={**architecture.fixed, **fixed})
    return Checked(architecture, tuple(stored), fixed)


def scale_widths(
    architecture: Architecture,
    ratio: float | Mapping[str, float],
    divisor: DivisorLike = 1,
    check: bool = True,
    exact: bool = False,
) -> tuple[Width, ...]:
    """Return one edit per independent group that multiplies its width by a ratio.

    Args:
        architecture: the network.
        ratio: one ratio for all free groups, or ratios by group name (missing: unchanged).
        divisor: round widths to multiples of this.
        check: run a copy with all edits, and leave out those that the network's code does not bear; without it, they
            are what the labels allow.
        exact: let groups that grow take the next whole multiple where a statistic across them, such as a layer norm,
            moves otherwise: 1.5 then means twice the channels there, at up to four times their cost.

    Returns:
        Edits for the groups that change; of groups tied in size only the largest is named. A warning names those
        that are left out.
    """
    edits = proportional_widths(architecture, ratio, divisor, exact)
    if not check or not edits:
        return edits
    culprits = _Trial(architecture).culprits(edits)
    if culprits:
        listed = "; ".join(f"{name} ({reason})" for name, reason in culprits.items())
        warnings.warn(f"left as they are, because the network's code fixes them: {listed}.", stacklevel=2)
    return tuple(edit for edit in edits if edit.target not in culprits)


def in_proportion(architecture: Architecture, edit: Width, near: Sequence[str]) -> tuple[Width, ...]:
    """Return the fewest edits that change a group together with others, all by one ratio, where alone it does not run.

    Args:
        architecture: the network.
        edit: what does not run alone.
        near: the groups at the place where it stops.

    Returns:
        The edits; empty if nothing runs in proportion either.
    """
    if edit.target not in near or len(near) > _MOST_NEAR:
        return ()
    trial = _Trial(architecture)
    for ratio in (edit.size / architecture.group(edit.target).size, 2.0):
        edits = list(proportional_widths(architecture, dict.fromkeys(near, ratio)))
        if not any(e.target == edit.target for e in edits) or trial.failure(edits) is not None:
            continue
        for each in [e for e in edits if e.target != edit.target]:
            fewer = [e for e in edits if e is not each]
            edits = fewer if trial.failure(fewer) is None else edits
        return tuple(edits)
    return ()


def with_remedy(architecture: Architecture, edits: Sequence[Edit], error: EditError) -> EditError:
    """Return a refusal; of a width, with the edits that do it where groups have to change in proportion."""
    if not isinstance(error, UnrunnableWidthsError) or len(edits) > 1 or not isinstance(edits[0], Width):
        return error
    together = in_proportion(architecture, edits[0], error.near)
    if not together:
        return error
    named = ", ".join(f'Width("{edit.target}", {edit.size})' for edit in together)
    return EditError(
        f"{error.what} The code there takes shares of a size: change these groups in proportion, such as "
        f"apply({named})."
    )


@dataclass(eq=False)
class _Trial:
    """Runs of a network with sets of width edits at one ratio."""

    architecture: Architecture
    stored: Repairs = field(default_factory=dict)
    runs: int = 0

    def failure(self, edits: Sequence[Width]) -> tuple[str, tuple[str, ...]] | None:
        """Carry out edits together; return the message and the groups under suspicion if they do not run."""
        if not edits:
            return None
        self.runs += 1
        graph = self.architecture.channels
        try:
            sizes = solve(self.architecture, edits)
        except EditError as error:
            return str(error).rstrip("."), ()
        changed = np.flatnonzero(sizes.units != graph.units).tolist()
        chosen = {
            graph.groups[i].name: np.arange(sizes.units[i]) * int(graph.units[i]) // int(max(sizes.units[i], 1))
            for i in changed
        }
        plan = recipe(graph, sizes.after, chosen)
        try:
            self.stored |= repaired(TrialNetwork.of(self.architecture), sizes.units, lambda: plan)
        except (UnrepairableError, EditError) as error:
            groups = error.groups if isinstance(error, UnrepairableError) else ()
            return str(error).rstrip("."), groups
        return None

    def culprits(self, edits: Sequence[Width]) -> dict[str, str]:
        """Return the targets that cannot change, each with the reason.

        Whoever changes where a rehearsal stops is set aside until the others run together; bisection then gives
        back those that do no harm.
        """
        reasons: dict[str, str] = {}
        aside, graph = list[Width](), self.architecture.channels
        rest = list(edits)
        while (found := self.failure(rest)) is not None:
            message, groups = found
            tied = {name: graph.group(name).tied for name in (e.target for e in rest)}
            suspects = [e for e in rest if {e.target, *tied[e.target]} & set(groups)] or rest
            reasons.update(dict.fromkeys((e.target for e in suspects), message))
            aside += suspects
            rest = [e for e in rest if e not in suspects]
        guilty = self._bisect(aside, rest) if aside else []
        return {e.target: reasons[e.target] for e in guilty}

    def _bisect(self, suspects: list[Width], good: list[Width]) -> list[Width]:
        """Return suspects without which, beside good edits, the others run."""
        if self.runs >= _MOST_RUNS or self.failure([*good, *suspects]) is None:
            return [] if self.runs < _MOST_RUNS else suspects
        if len(suspects) == 1:
            return suspects
        middle = len(suspects) // 2
        guilty = self._bisect(suspects[:middle], good)
        innocent = [e for e in suspects[:middle] if e not in guilty]
        return guilty + self._bisect(suspects[middle:], [*good, *innocent])
