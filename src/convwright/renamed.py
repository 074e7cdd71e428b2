"""Old names of version 0.1: they work until version 0.3, with a `DeprecationWarning`."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNTIL = "0.3"
MODULES: Mapping[str, str] = {
    "convwright.architecture.origins": "convwright.architecture.channels",
    "convwright.edits.check": "convwright.edits.execution_check",
    "convwright.methods.baselines": "convwright.methods.uniform",
    "convwright.methods.conflict_rules": "convwright.methods.conflicts.blocks",
    "convwright.methods.kernel_optimizer": "convwright.methods.receptive_field.kernel_optimizer",
    "convwright.methods.layer_operators": "convwright.methods.receptive_field.layer_operators",
    "convwright.methods.method": "convwright.methods.base",
    "convwright.methods.phase_techniques": "convwright.methods.phased.techniques",
    "convwright.methods.phases": "convwright.methods.phased.phased",
    "convwright.methods.scaling": "convwright.methods.enlarging.compound",
    "convwright.methods.stage_knobs": "convwright.methods.shared.stage_knobs",
    "convwright.methods.unit_moves": "convwright.methods.receptive_field.unit_moves",
    "convwright.methods.width_updates": "convwright.methods.channel_search.updates",
    "convwright.metrics.bundle_check": "convwright.metrics.bundles.counter",
    "convwright.metrics.members": "convwright.metrics.quality.members",
    "convwright.metrics.rank": "convwright.metrics.quality.evbmf",
    "convwright.metrics.weight_grid": "convwright.metrics.bundles.weight_grid",
    "convwright.runs.advice": "convwright.diagnose.advice",
    "convwright.runs.doctor": "convwright.diagnose.doctor",
    "convwright.runs.experiments": "convwright.experiments.papers",
    "convwright.runs.result": "convwright.runs.directory.result",
    "convwright.training.conflict_probe": "convwright.training.probes.bundles",
    "convwright.training.data_sets": "convwright.training.data.named",
    "convwright.training.images": "convwright.training.data.images",
    "convwright.training.loader": "convwright.training.data.loader",
    "convwright.training.schedules": "convwright.training.recipe.schedules",
    "convwright.training.sources": "convwright.training.data.sources",
    "convwright.training.techniques.blurpool": "convwright.training.techniques.replaced_layers",
    "convwright.training.techniques.depthwise_separable": "convwright.training.techniques.replaced_layers",
    "convwright.training.techniques.global_pool": "convwright.training.techniques.replaced_layers",
    "convwright.training.techniques.squeeze_excite": "convwright.training.techniques.replaced_layers",
}


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that knows old names of what stands in it.

    Args:
        module: Its name.
        names: Old name -> new name.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return get


def install() -> None:
    """Let modules be imported by their old names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Finder:
    """Asked last, when no file has the name.

    The classes of `importlib.abc` would say what this is, and take half as long to import as all of convwright.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Copy()) if fullname in MODULES else None  # type: ignore[arg-type]


class _Copy:
    """Fills the old module with what the new one has."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warn_renamed(module.__name__, new)
        content = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in content.items() if not name.startswith("__")})


def warn_renamed(old: str, new: str) -> None:
    """Warn of an old name, at the line that called what calls this."""
    warnings.warn(f"{old} is {new} now; the old name works until {UNTIL}", DeprecationWarning, stacklevel=3)
