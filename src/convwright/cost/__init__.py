"""Costs: MACs, parameters, memory, latency; the same as functions of the widths; budgets."""

from convwright.cost.budget import (
    MEASURED,
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
from convwright.cost.counts import METRICS, LayerCost, ModuleCost, Profile, profile
from convwright.cost.latency import Comparison, Latency, Spread, compare_latency, measure_latency
from convwright.cost.latency_model import LatencyModel, LayerLatencies, LayerLatency, layer_latencies
from convwright.cost.latency_table import LatencyTable
from convwright.cost.recount import count_by_torch

__all__ = [
    "MEASURED",
    "METRICS",
    "Budget",
    "Comparison",
    "CostModel",
    "Estimate",
    "Latency",
    "LatencyModel",
    "LatencyTable",
    "LayerCost",
    "LayerLatencies",
    "LayerLatency",
    "Limits",
    "ModuleCost",
    "Profile",
    "Spread",
    "Term",
    "check_feasible",
    "compare_latency",
    "costs_of",
    "count_by_torch",
    "feasible_range",
    "human",
    "layer_latencies",
    "measure_latency",
    "parse_budget",
    "profile",
    "smallest_widths",
]
