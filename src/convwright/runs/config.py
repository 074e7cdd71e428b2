"""What `optimize` was called with, checked, and as the settings that a run directory records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture import Architecture
from convwright.cost.budget import Budget, Limits, parse_budget
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.auto.pareto import objective_costs
from convwright.methods.options import checked_options
from convwright.runs.evaluate import refuse_structural
from convwright.runs.executors import Placement
from convwright.runs.load import LoadedModel, Shape
from convwright.runs.loop import Say
from convwright.runs.proxy import ProxyConfig
from convwright.runs.time_budget import TimeBudget
from convwright.training import Recipe
from convwright.training.data.proxy import Proxy

PARETO = "pareto"


@dataclass(frozen=True, eq=False)
class RunConfig:
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
    proxy: ProxyConfig | None = None

    @property
    def terms(self) -> Budget:
        """The budget as it is written; empty where there is none."""
        return terms_of(self.budget)

    @property
    def objective(self) -> tuple[str, ...]:
        """The costs of a Pareto search; none of any other method."""
        return objective_costs(self.options.get("objective", "macs")) if self.method == PARETO else ()

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
            BudgetError: There is no budget, and the method needs one.
            RecipeError: A technique of the recipe edits the network.
        """
        if not self.budget and self.method != PARETO:
            raise BudgetError(
                f"method {self.method} redesigns a network to a budget; give --budget, such as macs<=50%, or an "
                "objective, such as --objective accuracy,macs"
            )
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

    def settings(self, opened: LoadedModel, limits: Limits, proxy: Proxy | None = None) -> dict[str, Any]:
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
            **({"objective": list(self.objective)} if self.objective else {}),
            **({"time": self.time.text} if self.time is not None else {}),
            **({"proxy": self.proxy.settings(proxy)} if self.proxy is not None and proxy is not None else {}),
        }


def terms_of(budget: Sequence[str]) -> Budget:
    """Read the texts of a budget; none of them is no limit.

    Raises:
        BudgetError: One does not parse.
    """
    return parse_budget(list(budget)) if budget else Budget(())


def sought(
    method: str | None, objective: str | Sequence[str] | None, options: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Return the method of a run and its options.

    Args:
        method: As given; None: `auto`, or `pareto` where there is an objective.
        objective: Accuracy and one or two costs, as given.
        options: As given.

    Raises:
        ConvwrightError: The objective is wrong, is given twice, or is given to another method.

    Examples:
        >>> sought(None, "accuracy,macs", {"points": 3}), sought(None, None, None)
        (('pareto', {'points': 3, 'objective': ['macs']}), ('auto', {}))
    """
    given = dict(options or {})
    if objective is None:
        return method or "auto", given
    if method not in (None, PARETO):
        raise ConvwrightError(
            f"an objective is for method {PARETO}, which seeks several networks; method {method} seeks one: leave "
            "--objective or --method out"
        )
    if "objective" in given:
        raise ConvwrightError("the objective is given twice, as --objective and as an option; give it once")
    return PARETO, {**given, "objective": list(objective_costs(objective))}


def _digest(arch: Architecture) -> str:
    """Return a digest of the structure and of all shapes, without the weights."""
    state = [(name, tuple(tensor.shape)) for name, tensor in arch.model.state_dict().items()]
    return hashlib.sha256(f"{arch.model}{state}".encode()).hexdigest()[:16]
