"""What `optimize` was called with, checked, and as the settings that a run directory records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.cost.budget import Limits
from convwright.errors import ConvwrightError
from convwright.runs.evaluate import refuse_structural
from convwright.runs.executors import Placement
from convwright.runs.method_options import checked_options
from convwright.runs.opening import Opened, Shape
from convwright.runs.proxies import ProxyAsked
from convwright.runs.search import Say
from convwright.runs.time_budget import TimeBudget
from convwright.training import Recipe
from convwright.training.proxy import Proxy


@dataclass(frozen=True, eq=False)
class Asked:
    """What `optimize` was called with, defaults filled in."""

    model: nn.Module | str
    data: Any
    budget: tuple[str, ...]
    method: str
    out: Path
    seed: int
    recipe: Recipe
    epochs: int | None
    tune_epochs: int | None
    divisor: int
    weights: Path | None
    input_shape: Shape | None
    data_dir: str | Path | None
    progress: bool
    workers: int | None
    say: Say
    command: str
    options: Mapping[str, Any] = field(default_factory=dict)
    time: TimeBudget | None = None
    placement: Placement = field(default_factory=Placement)
    storage: str | None = None
    proxy: ProxyAsked | None = None

    @property
    def base_epochs(self) -> int:
        """Epochs of trial 0."""
        given = 0 if self.weights is not None else self.recipe.epochs
        return self.epochs if self.epochs is not None else given

    @property
    def later_epochs(self) -> int:
        """Epochs of every other trial."""
        return self.tune_epochs if self.tune_epochs is not None else max(1, self.recipe.epochs // 2)

    def check(self) -> None:
        """Refuse what is wrong whatever the network and the data are.

        Raises:
            ConvwrightError: Unknown method or option of it, negative numbers.
            RecipeError: A technique of the recipe edits the network.
        """
        checked_options(self.method, self.options)
        refuse_structural(self.recipe)
        self.placement.check()
        for name, value, least in (
            ("epochs", self.base_epochs, 0),
            ("tune-epochs", self.later_epochs, 1),
            ("divisor", self.divisor, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ConvwrightError(f"{name}={value} must be a whole number from {least} on")

    def settings(self, opened: Opened, limits: Limits, proxy: Proxy | None = None) -> dict[str, Any]:
        """Return what the results depend on, as plain JSON values."""
        shape = "x".join(map(str, opened.data.shape))
        return {
            "model": opened.arch.source,
            "options": opened.options,
            "architecture": _digest(opened.arch),
            "data": f"{opened.data.name} ({len(opened.data.train)} training images {shape})",
            "budget": list(self.budget),
            "limits": dict(limits.limits),
            "method": self.method,
            "recipe": self.recipe.model_dump(mode="json"),
            "epochs": self.base_epochs,
            "tune_epochs": self.later_epochs,
            "divisor": self.divisor,
            "seed": self.seed,
            "weights": str(self.weights) if self.weights is not None else None,
            # Left out when there are none, so that runs started before there were such options are resumed.
            **({"method_options": dict(self.options)} if self.options else {}),
            **({"time": self.time.text} if self.time is not None else {}),
            **({"proxy": self.proxy.settings(proxy)} if self.proxy is not None and proxy is not None else {}),
        }


def _digest(arch: Architecture) -> str:
    """Return a digest of the structure and of all shapes, without the weights."""
    state = [(name, tuple(tensor.shape)) for name, tensor in arch.model.state_dict().items()]
    return hashlib.sha256(f"{arch.model}{state}".encode()).hexdigest()[:16]
