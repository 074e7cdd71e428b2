"""COST: what a network costs, as numbers and as functions of its widths, and budgets on it."""

from convwright.cost.budget import (
    MEASURED,
    METRICS,
    Budget,
    Estimate,
    Limits,
    Term,
    check_feasible,
    costs_of,
    feasible_range,
    human,
    parse_budget,
    smallest_widths,
)
from convwright.cost.cost_model import CostModel
from convwright.cost.counts import LayerCost, ModuleCost, Profile, profile
from convwright.cost.recount import count_by_torch

__all__ = [
    "MEASURED",
    "METRICS",
    "Budget",
    "CostModel",
    "Estimate",
    "LayerCost",
    "Limits",
    "ModuleCost",
    "Profile",
    "Term",
    "check_feasible",
    "costs_of",
    "count_by_torch",
    "feasible_range",
    "human",
    "parse_budget",
    "profile",
    "smallest_widths",
]
