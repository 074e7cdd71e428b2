"""COST: what a network costs, as numbers and as functions of its widths, and budgets on it."""

from convwright.cost.counts import LayerCost, ModuleCost, Profile, profile
from convwright.cost.recount import count_by_torch

__all__ = ["LayerCost", "ModuleCost", "Profile", "count_by_torch", "profile"]
