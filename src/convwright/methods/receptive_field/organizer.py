"""The stage-level organizer: units move to the stages where they enlarge the 3D receptive field most.

**Reconstructed.** Wang, Feng, Peng and Ding (CIKM 2021, arXiv 2009.05236) name a stage-level organizer that is led by
a 3DRF gain; its algorithm could not be obtained. The rule here: a stage with n units has the share ``rho(n)`` of its
scope; the next unit gains ``rho(n + 1) - rho(n)`` and the last one gained ``rho(n) - rho(n - 1)``; while some move of
one unit gains more than it loses, the best such move is made. The modes ``spend`` and the options ``effective``,
``score="log"`` or ``"positions"`` and ``per_cost`` go beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from convwright.architecture import Architecture
from convwright.cost.budget import Limits, human
from convwright.edits import Edit
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import register
from convwright.methods.options import MethodOptions, Terms
from convwright.methods.proposals import Proposal, Proposals
from convwright.methods.receptive_field.stage_units import UnitCost, find_units
from convwright.methods.receptive_field.unit_moves import MODES, Counts, Desk, Mode, Move, Rule
from convwright.metrics.receptive_field.analysis import FieldMeasure


@dataclass(frozen=True)
class Organization:
    """What the organizer decided.

    Attributes:
        stages: names of the stages with units.
        before: units of each.
        after: units of each afterwards.
        moves: how it came to that, in order.
        score_before: Q of the network.
        score_after: Q afterwards.
        cost_before: MACs and parameters of the network.
        cost_after: the same afterwards.
        edits: from the network to the new one.
        skipped: stages that could not take part, or only in part -> why.
        reason: why it ended there.
    """

    stages: tuple[str, ...]
    before: Counts
    after: Counts
    moves: tuple[Move, ...]
    score_before: float
    score_after: float
    cost_before: UnitCost
    cost_after: UnitCost
    edits: tuple[Edit, ...]
    skipped: Mapping[str, str]
    reason: str

    def log(self) -> tuple[str, ...]:
        """Return the decision in sentences with numbers."""
        counts = f"units per stage {list(self.before)} -> {list(self.after)}"
        change = f"Q {self.score_before:.3f} -> {self.score_after:.3f}"
        costs = (
            f"MACs {human(self.cost_before.macs)} -> {human(self.cost_after.macs)}, "
            f"parameters {human(self.cost_before.params, 'params')} -> {human(self.cost_after.params, 'params')}"
        )
        numbered = (f"{i}. {move}" for i, move in enumerate(self.moves, start=1))
        left_out = (f"{name}: {reason.rstrip('.')}." for name, reason in self.skipped.items())
        return (f"{counts}, {change}, {costs}.", *numbered, self.reason, *left_out)


def organize(
    arch: Architecture, rule: Rule | None = None, limits: Limits | None = None, sight: FieldMeasure | None = None
) -> Organization:
    """Distribute a network's units over its stages by 3DRF gain.

    Args:
        arch: the network; its weights are not looked at.
        rule: how.
        limits: on MACs and parameters; those of the rule's tolerances if not given.
        sight: how fields are counted.

    Returns:
        The decision; ``edits`` leads to the new network.

    Raises:
        BudgetError: no distribution keeps the limits, they limit something else than MACs and parameters, or
            ``spend`` has none.
        ConvwrightError: the network has no stages with units.
    """
    rule = rule or Rule()
    check_counted(limits)
    units = find_units(arch, sight)
    if not units.stages:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in units.skipped.items()) or "no stage has blocks"
        raise ConvwrightError(f"{arch.source} has no units to move between stages ({reasons}).")
    profile = arch.profile()
    base = UnitCost(profile.macs, profile.params)
    desk = Desk(units, rule, base, _numbers(base, rule, limits))
    moves, after, reason = MODES[rule.mode](desk)
    return Organization(
        stages=tuple(stage.name for stage in units.stages),
        before=units.counts,
        after=after,
        moves=tuple(moves),
        score_before=desk.q(units.counts),
        score_after=desk.q(after),
        cost_before=desk.base,
        cost_after=desk.cost(after),
        edits=units.edits(after),
        skipped=units.skipped,
        reason=reason,
    )


def _numbers(base: UnitCost, rule: Rule, limits: Limits | None) -> dict[str, int]:
    if limits is not None:
        return dict(limits.limits)
    if rule.mode == "spend":
        raise BudgetError("mode 'spend' needs a budget of MACs or parameters, such as macs<=120%")
    allowed = {"macs": base.macs * (1 + rule.macs_tolerance), "params": base.params * (1 + rule.params_tolerance)}
    return {metric: math.floor(limit) for metric, limit in allowed.items() if limit < math.inf}


class OrganizerOptions(MethodOptions):
    """Options of method ``receptive-field``.

    Attributes:
        mode: ``greedy`` or ``spend``. If not given, the rule's; without a rule ``spend`` where there
            are limits, else ``greedy``.
        rule: Everything else about the moves.
        sight: How fields are counted.
    """

    mode: Mode | None = None
    rule: Rule | None = None
    sight: FieldMeasure | None = None


@register("receptive-field")
class ReceptiveFieldOrganizer(Proposals):
    """The stage-level organizer as a search method: one proposal, trained beside the untouched network.

    A budget limits MACs and parameters; without one the rule's tolerances do. Widths stay.

    Attributes:
        organization: The decision, known before any training.

    Raises:
        BudgetError: No distribution keeps the limits, or they limit something else than MACs and parameters.
        ConvwrightError: The network has no stages with units.

    Examples:
        >>> import convwright as cw
        >>> organizer = cw.methods.ReceptiveFieldOrganizer(cw.read("zoo:mobilenet-v1"))
        >>> organizer.organization.before, organizer.organization.after
        ((1, 2, 2, 6, 2), (1, 2, 5, 3, 2))
    """

    Options = OrganizerOptions
    options: OrganizerOptions
    default_terms = Terms(epochs=0)

    def set_up(self) -> None:
        """Decide."""
        limits, given = self.limits, self.options
        check_counted(limits)
        rule = given.rule or Rule("greedy" if limits is None else "spend")
        if given.mode is not None:
            rule = replace(rule, mode=given.mode)
        found = self.organization = organize(self.arch, rule, limits, given.sight)
        if limits is not None and not found.edits:
            why = " ".join(found.log()[1:])
            raise BudgetError(f"the organizer has nothing to move within {limits.describe()}. {why}")
        words = f"units {list(found.before)} -> {list(found.after)}"
        self.propose_one(Proposal(words, found.edits), "stage-level organizer", found.log())


def check_counted(limits: Limits | None) -> None:
    """Refuse limits that cannot be told from units and operators alone.

    Raises:
        BudgetError: a limit is on something else than MACs and parameters.
    """
    others = [m for m in (limits.limits if limits is not None else {}) if m not in ("macs", "params")]
    if others:
        raise BudgetError(
            f"the receptive-field methods take budgets of macs and params, not of {', '.join(others)}. "
            "Limit one of these, or use method 'uniform'."
        )
