"""Width edits of all free groups by a ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from convwright.architecture import Architecture
from convwright.architecture.channels import ChannelGroup
from convwright.edits.compensate import exact_sizes
from convwright.edits.constraints import DivisorLike, multiple_of, width_range
from convwright.edits.width import Width, round_width, solve
from convwright.errors import EditError


def proportional_widths(
    architecture: Architecture, ratio: float | Mapping[str, float], divisor: DivisorLike = 1, exact: bool = False
) -> tuple[Width, ...]:
    """Return one edit per independent group that multiplies its width by a ratio, as far as labels can tell.

    Args:
        architecture: the network.
        ratio: one ratio for all free groups, or ratios by group name (missing: unchanged).
        divisor: round widths to multiples of this.
        exact: let groups that grow take the next whole multiple where a statistic across them moves otherwise.

    Returns:
        Edits for the groups that change; of groups tied in size only the largest is named.
    """
    wanted: list[tuple[ChannelGroup, int]] = []
    covered: set[str] = set()
    for group in sorted(architecture.free_groups, key=lambda g: -g.size):
        if group.name in covered:
            continue
        covered |= {group.name, *group.tied}
        if any(architecture.channels.group(t).frozen for t in group.tied):
            continue
        factor = ratio.get(group.name, 1.0) if isinstance(ratio, Mapping) else ratio
        family = map(architecture.channels.group, (group.name, *group.tied))
        if exact and exact_sizes((each, int(each.size * factor + 0.5)) for each in family):
            factor = math.ceil(factor)
        size = round_width(group.size * factor, group, divisor)
        if group.bounds is not None:
            size = width_range(architecture.channels, group, divisor).nearest(group.size * factor)
        if (size - group.size) * (factor - 1) > 0:  # none grows where all shrink
            wanted.append((group, size))
    edits = [Width(group.name, size) for group, size in wanted if not group.tied]
    for sign in (-1, 1):
        tied = [(group, size) for group, size in wanted if group.tied and (size - group.size) * sign > 0]
        edits += _fitting(architecture, tied, divisor) if tied else []
    order = architecture.channels.index
    return tuple(sorted(edits, key=lambda e: order[e.target]))


def _fitting(architecture: Architecture, wanted: list[tuple[ChannelGroup, int]], divisor: DivisorLike) -> list[Width]:
    """Return edits of tied groups, all down or all up, near sizes that the network can be followed with.

    Each try follows the whole network, so they are tried together; in halves where that does not work. Rounding may
    move a tied group the other way (one of three shrinks by a channel while the family grows); sizes with which that
    does not happen come first.
    """
    fallback: list[Width] = []
    for offset in (0, -1, 1, -2, 2, -3, 3) if len(wanted) == 1 else (0,):
        edits = [Width(group.name, size + offset * multiple_of(group, divisor)) for group, size in wanted]
        change = edits[0].size - wanted[0][0].size
        if edits[0].size < 1 or not change:
            continue
        with suppress(EditError):
            moves = solve(architecture, edits).units - architecture.channels.units
            if not (moves * change < 0).any():
                return edits
            fallback = fallback or edits
    middle = len(wanted) // 2
    halves = (wanted[:middle], wanted[middle:]) if middle else ()
    return [edit for half in halves for edit in _fitting(architecture, half, divisor)] or fallback
