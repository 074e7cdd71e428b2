"""Redesign convolutional networks to a budget, with the trained weights kept and every number proved.

Examples:
    >>> import convwright as cw
    >>> arch = cw.read("zoo:resnet20")
    >>> arch.profile().macs
    40813184
    >>> new = arch.apply(cw.Width("layer1.0.conv1", 8))
    >>> new.changes[0].exact
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright import cost, edits, layers, methods, runs, techniques, training, zoo
    from convwright.architecture import Architecture, Block, ChannelGroup, Layer, Stage, read
    from convwright.cost import CostModel, Profile, parse_budget
    from convwright.edits import (
        AddBlock,
        Change,
        Constraints,
        InexactEditWarning,
        Kernel,
        Plan,
        RemoveBlock,
        Replace,
        Resolution,
        Width,
        apply,
        saliency,
        scale_widths,
    )
    from convwright.errors import BudgetError, ConvwrightError, DataError, EditError, ReadError, RecipeError, RunError
    from convwright.export import load
    from convwright.methods import allocate
    from convwright.metrics.bundles.counter import Bundles, bundles
    from convwright.metrics.quality.channel_quality import ChannelQuality, channel_quality
    from convwright.metrics.quality.evbmf import Evbmf, evbmf
    from convwright.metrics.receptive_field.analysis import ReceptiveField, receptive_field
    from convwright.runs import Result
    from convwright.runs.optimize import compress, optimize
    from convwright.runs.own_loop import Search, Trial
    from convwright.training import Metric, Recipe, Task, TrainResult, load_data, tasks, train

__version__ = "0.1.0"

# Where each public name lives. They are imported at first use: the command line answers in a fraction of a second
# where it does not need torch.
_HOMES = {
    "convwright.architecture": ("Architecture", "Block", "ChannelGroup", "Layer", "Stage", "read"),
    "convwright.cost": ("CostModel", "Profile", "parse_budget"),
    "convwright.edits": (
        "AddBlock", "Change", "Constraints", "InexactEditWarning", "Kernel", "Plan", "RemoveBlock", "Replace",
        "Resolution", "Width", "apply", "saliency", "scale_widths",
    ),
    "convwright.errors": (
        "BudgetError", "ConvwrightError", "DataError", "EditError", "ReadError", "RecipeError", "RunError",
    ),
    "convwright.metrics": (
        "Bundles", "ChannelQuality", "Evbmf", "ReceptiveField", "bundles", "channel_quality", "evbmf",
        "receptive_field",
    ),
    "convwright.export": ("load",),
    "convwright.methods": ("allocate",),
    "convwright.runs": ("Result", "Search", "Trial", "compress", "optimize"),
    "convwright.training": ("Metric", "Recipe", "Task", "TrainResult", "load_data", "tasks", "train"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBPACKAGES = (
    "architecture", "cost", "edits", "layers", "methods", "metrics", "runs", "techniques", "training", "zoo",
)  # fmt: skip

__all__ = [
    "AddBlock", "Architecture", "Block", "BudgetError", "Bundles", "Change", "ChannelGroup", "ChannelQuality",
    "Constraints", "ConvwrightError", "CostModel", "DataError", "EditError", "Evbmf", "InexactEditWarning",
    "Kernel", "Layer", "Metric", "Plan", "Profile", "ReadError", "ReceptiveField", "Recipe", "RecipeError",
    "RemoveBlock", "Replace", "Resolution", "Result", "RunError", "Search", "Stage", "Task", "TrainResult", "Trial",
    "Width", "__version__", "allocate", "apply", "bundles", "channel_quality", "compress", "cost", "edits", "evbmf",
    "layers", "load", "load_data", "methods", "metrics", "optimize", "parse_budget", "read", "receptive_field",
    "runs", "saliency", "scale_widths", "tasks", "techniques", "train", "training", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"convwright.{name}")
    else:
        raise AttributeError(f"module 'convwright' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
