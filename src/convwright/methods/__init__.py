"""DECIDE: search methods, pure ask/tell state machines.

>>> from convwright import methods
>>> ", ".join(sorted(methods.METHODS))
'auto, channel-search, conflicts, greedy, kernel, pareto, phased, random, receptive-field, scaling, uniform'
"""

from __future__ import annotations

import importlib
import pkgutil

from convwright.methods.auto import Auto
from convwright.methods.baselines import Uniform
from convwright.methods.channel_search import ChannelSearch
from convwright.methods.conflicts import ConflictDecision, ConflictRemoval
from convwright.methods.enlarging import GreedyEnlarging
from convwright.methods.kernel_optimizer import KernelOptimizer, Kernels, optimize_kernels
from convwright.methods.layer_operators import Menu
from convwright.methods.method import (
    METHODS,
    Candidate,
    Evidence,
    Maker,
    Method,
    Status,
    Stop,
    Weights,
    method_named,
    register,
)
from convwright.methods.pareto import ParetoSearch
from convwright.methods.phase_techniques import Trying
from convwright.methods.phases import Decision, PhasedDesign
from convwright.methods.random_widths import RandomWidths
from convwright.methods.receptive_field import Organization, ReceptiveFieldOrganizer, organize
from convwright.methods.scaling import Scaling
from convwright.methods.unit_moves import Rule

__all__ = [
    "METHODS",
    "Auto",
    "Candidate",
    "ChannelSearch",
    "ConflictDecision",
    "ConflictRemoval",
    "Decision",
    "Evidence",
    "GreedyEnlarging",
    "KernelOptimizer",
    "Kernels",
    "Maker",
    "Menu",
    "Method",
    "Organization",
    "ParetoSearch",
    "PhasedDesign",
    "RandomWidths",
    "ReceptiveFieldOrganizer",
    "Rule",
    "Scaling",
    "Status",
    "Stop",
    "Trying",
    "Uniform",
    "Weights",
    "method_named",
    "optimize_kernels",
    "organize",
    "register",
]

# Importing a file registers its methods: a new method is one new file and nothing here changes.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
