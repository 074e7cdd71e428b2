"""Search methods: each proposes candidates and learns from their results; none of them trains.

>>> from convwright import methods
>>> ", ".join(sorted(methods.METHODS))
'auto, channel-search, conflicts, greedy, kernel, pareto, phased, random, receptive-field, saliency, scaling, uniform'
"""

from __future__ import annotations

import importlib
import pkgutil

from convwright.methods.auto.auto import Auto
from convwright.methods.auto.pareto import ParetoSearch
from convwright.methods.base import (
    METHODS,
    Candidate,
    Decision,
    Evidence,
    Maker,
    Method,
    Status,
    Stop,
    Weights,
    method_named,
    register,
)
from convwright.methods.channel_search.search import ChannelSearch
from convwright.methods.conflicts.removal import ConflictDecision, ConflictRemoval
from convwright.methods.enlarging.compound import Scaling
from convwright.methods.enlarging.greedy import GreedyEnlarging
from convwright.methods.options import ConfigurableMethod, MethodOptions, Terms
from convwright.methods.phased.phased import PhasedDesign
from convwright.methods.phased.techniques import Trying
from convwright.methods.random_widths import RandomWidths
from convwright.methods.receptive_field.kernel_optimizer import KernelOptimizer, Kernels, optimize_kernels
from convwright.methods.receptive_field.layer_operators import Menu
from convwright.methods.receptive_field.organizer import Organization, ReceptiveFieldOrganizer, organize
from convwright.methods.receptive_field.unit_moves import Rule
from convwright.methods.saliency import Saliency, allocate
from convwright.methods.uniform import Uniform

__all__ = [
    "METHODS", "Auto", "Candidate", "ChannelSearch", "ConfigurableMethod", "ConflictDecision",
    "ConflictRemoval", "Decision", "Evidence", "GreedyEnlarging", "KernelOptimizer", "Kernels", "Maker", "Menu",
    "Method", "MethodOptions", "Organization", "ParetoSearch", "PhasedDesign", "RandomWidths",
    "ReceptiveFieldOrganizer", "Rule", "Saliency", "Scaling", "Status", "Stop", "Terms", "Trying", "Uniform",
    "Weights", "allocate", "method_named", "optimize_kernels", "organize", "register",
]  # fmt: skip

# Importing a file registers its methods: a new method is one new file and nothing here changes.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
