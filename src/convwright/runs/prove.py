"""The proof of a result: built anew from its files, counted twice, held against the budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.cost import count_by_torch, profile
from convwright.cost.budget import MEASURED, Limits, costs_of, human
from convwright.edits import Plan
from convwright.errors import BudgetError
from convwright.ranking import metric_of
from convwright.runs.directory.files import load_weights
from convwright.runs.directory.result import Result
from convwright.runs.evaluate import reshaped
from convwright.runs.verdict import behind, judged_part, lost


class BrokenBudgetError(BudgetError):
    """A result that does not keep its promise; the exit code is 3.

    Attributes:
        result: The result, where it was written all the same: its latency is over the limit, or it is worse than it
            may be. None where its counts are wrong: then nothing is written.
    """

    result: Result | None = None


@dataclass(frozen=True, eq=False)
class Proof:
    """A network built anew from plan and weights, with its counts.

    Attributes:
        arch: The network.
        costs: Convwright's counts, by metric.
        counts: MACs and parameters, each as ``{"convwright": n, "torch": n}``.
        uncounted: Operators that nobody counts.
    """

    arch: Architecture
    costs: dict[str, int]
    counts: dict[str, dict[str, int]]
    uncounted: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"costs": self.costs, "counts": self.counts, "uncounted": list(self.uncounted)}


def prove(arch: Architecture, plan: Plan, weights: Path) -> Proof:
    """Build a network from the original, a plan and a file of weights, and count it twice.

    Raises:
        BrokenBudgetError: The two counts differ.
        RunError: The weights do not fit the plan.
    """
    built = reshaped(arch, plan)
    load_weights(built.model, weights)
    ours = profile(built)
    model: nn.Module = copy.deepcopy(built.model)
    counts = {
        "macs": {"convwright": ours.macs, "torch": count_by_torch(model, built.inputs)},
        "params": {"convwright": ours.params, "torch": sum(p.numel() for p in model.parameters())},
    }
    for metric, pair in counts.items():
        if pair["convwright"] != pair["torch"]:
            raise BrokenBudgetError(
                f"{arch.source}: {metric} are {pair['convwright']:,} by convwright's count and {pair['torch']:,} by "
                "torch's; no result was written. Please report this network"
            )
    return Proof(built, costs_of(ours), counts, ours.uncounted)


def check_budget(proof: Proof, limits: Limits, latency: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Hold counts and measurements against the limits; what is measured may break them, see `check_promises`.

    Args:
        proof: The result with its counts.
        limits: The budget in numbers.
        latency: The measured latency, judged, where the budget limits it.

    Returns:
        Per limited metric: ``limit``, ``convwright`` (and ``torch`` where it counts), ``met``; latency as given.

    Raises:
        BrokenBudgetError: A limit on what is counted is broken.
    """
    found: dict[str, dict[str, Any]] = {}
    for metric, limit in limits.limits.items():
        if metric not in MEASURED:
            pair = proof.counts.get(metric, {"convwright": proof.costs[metric]})
            found[metric] = {"limit": limit, **pair, "met": max(pair.values()) <= limit}
        elif latency is not None:
            found[metric] = latency
    broken = [_said(m, values) for m, values in found.items() if m not in MEASURED and not values["met"]]
    if broken:
        raise BrokenBudgetError(f"the result breaks the budget: {', '.join(broken)}; no result was written")
    return found


def check_promises(result: Result, max_drop: float | None) -> None:
    """Refuse a written result whose measured latency is over the limit, or that is worse than it may be.

    Args:
        result: The result, which stays where it is.
        max_drop: By how much it may be worse than the baseline, in points or in the metric's unit; None: any.

    Raises:
        BrokenBudgetError: It has the result.
    """
    judged = {m: values for m, values in result.data["budget_met"].items() if m in MEASURED and not values["met"]}
    broken = [f"{_said(m, values)}; measure it again with --resume" for m, values in judged.items()]
    worse, metric = lost(result.data), metric_of(result.data)
    if max_drop is not None and worse > max_drop:
        what = f"{judged_part(result.data)} {metric.name} is {behind(metric, worse, 2)} the baseline"
        broken.append(f"{what}, and --max-drop allows {max_drop:g}")
    if broken:
        error = BrokenBudgetError(f"the result breaks its promise: {'; '.join(broken)}. It is kept in {result.folder}")
        error.result = result
        raise error


def _said(metric: str, values: dict[str, Any]) -> str:
    if metric not in MEASURED:
        largest = max(int(values["convwright"]), int(values.get("torch", 0)))
        return f"{metric} are {largest:,} of {values['limit']:,}"
    measured, limit, before = (human(values[name], metric) for name in ("measured", "limit", "before"))
    return f"{metric} is {measured} of {limit} (the untouched network: {before})"
