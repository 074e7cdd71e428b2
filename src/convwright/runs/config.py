"""What `optimize` was called with, checked, and as the settings that a run directory records."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from torch import nn

from convwright.architecture import Architecture
from convwright.arguments import OPTIMIZE
from convwright.cost.budget import Budget, Limits, parse_budget
from convwright.cost.runtimes import Target, runtime_named
from convwright.edits.constraints import Constraints
from convwright.errors import BudgetError, ConvwrightError, check_counts
from convwright.methods.auto.pareto import objective_costs
from convwright.methods.options import checked_options
from convwright.ranking import ACCURACY, Metric
from convwright.runs.candidate_recipe import refuse_structural
from convwright.runs.directory.study import read_settings
from convwright.runs.executors import Placement
from convwright.runs.load import LoadedModel, Shape, parse_input
from convwright.runs.loop import Say
from convwright.runs.proxy import ProxyConfig
from convwright.runs.repairing import Repairs
from convwright.runs.time_budget import TimeBudget
from convwright.training import Recipe
from convwright.training.data.proxy import Proxy
from convwright.training.recipe.recipe import as_recipe

PARETO = "pareto"
FINETUNE, DISTILL = "finetune", "distill"  # a preset and a technique
_Function = TypeVar("_Function", bound=Callable[..., Any])


class OptimizeOptions(TypedDict, total=False):
    """What `optimize` and `compress` take by name alone; `RunConfig` has the defaults."""

    resume: bool
    epochs: int | None
    tune_epochs: int | None
    divisor: int | Literal["auto"]
    constraints: Constraints | Mapping[str, Any] | str | Path | None
    weights: str | Path | None
    pretrained: bool
    trained: bool
    input_shape: str | Shape | None
    data_dir: str | Path | None
    progress: bool
    workers: int | None
    say: Say | None
    command: str
    options: Mapping[str, Any] | None
    time: str | None
    placement: Placement
    storage: str | None
    device_command: str | None
    proxy_classes: int | None
    proxy_samples: int | None
    objective: str | Sequence[str] | None
    max_drop: float | None
    baseline: bool
    reestimate: bool
    merge: bool | None
    refit: bool | None
    calibration: int
    distill: bool


@dataclass(frozen=True, eq=False)
class RunConfig:
    """What `optimize` was called with; `convwright.arguments` says what each field means."""

    model: nn.Module | str
    data: Any
    budget: str | Sequence[str] = ()
    method: str | None = None
    out: str | Path | None = None
    seed: int = 0
    recipe: Recipe | str | Path | None = None
    resume: bool = False
    epochs: int | None = None
    tune_epochs: int | None = None
    divisor: int | Literal["auto"] = "auto"
    constraints: Constraints | Mapping[str, Any] | str | Path | None = None
    weights: str | Path | None = None
    pretrained: bool = False
    trained: bool = False
    input_shape: str | Shape | None = None
    data_dir: str | Path | None = None
    progress: bool = True
    workers: int | None = None
    say: Say | None = None
    command: str = ""
    options: Mapping[str, Any] | None = None
    time: str | None = None
    placement: Placement = Placement()  # noqa: RUF009 - frozen
    storage: str | None = None
    device_command: str | None = None
    proxy_classes: int | None = None
    proxy_samples: int | None = None
    objective: str | Sequence[str] | None = None
    max_drop: float | None = None
    baseline: bool = True
    reestimate: bool = True
    merge: bool | None = None
    refit: bool | None = None
    calibration: int = 512
    distill: bool = False

    @cached_property
    def folder(self) -> Path:
        """The run directory."""
        return default_folder(self.model, self.budget, self.objective or ()) if self.out is None else Path(self.out)

    @cached_property
    def terms(self) -> Budget:
        """The budget as it is written; empty where there is none."""
        return terms_of(self.budgets)

    @cached_property
    def target(self) -> Target | None:
        """What the budget's latency is measured on, where the budget names it.

        Raises:
            BudgetError: A command for a device is given, and the budget is none on it.
        """
        target = self.terms.target
        if self.device_command is None:
            return target
        if target is None or target.runtime != "command":
            raise BudgetError("--device-command measures a budget on the runtime command: latency[command]<=50%")
        return replace(target, command=self.device_command)

    @property
    def budgets(self) -> tuple[str, ...]:
        """Its texts."""
        return (self.budget,) if isinstance(self.budget, str) else tuple(self.budget)

    @cached_property
    def search(self) -> tuple[str, dict[str, Any]]:
        """The method's name and its options.

        Raises:
            ConvwrightError: The objective is wrong, is given twice, or is given to another method.
        """
        options = dict(self.options or {})
        if self.objective is None:
            return self.method or "auto", options
        if self.method not in (None, PARETO):
            raise ConvwrightError(
                f"an objective is for method {PARETO}, which seeks several networks; method {self.method} seeks one: "
                "leave --objective or --method out"
            )
        if "objective" in options:
            raise ConvwrightError("the objective is given twice, as --objective and as an option; give it once")
        return PARETO, {**options, "objective": list(objective_costs(self.objective))}

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs of a Pareto search; none of any other method."""
        method, options = self.search
        return objective_costs(options.get("objective", "macs")) if method == PARETO else ()

    @cached_property
    def training(self) -> Recipe:
        """The recipe of all trainings; trained weights are fine-tuned where no recipe is stated."""
        recipe = as_recipe(FINETUNE if self.finetunes else self.recipe)
        if not self.distill or DISTILL in recipe.techniques:
            return recipe
        return recipe.updated(techniques={**recipe.model_dump()["techniques"], DISTILL: {}})

    @cached_property
    def finetunes(self) -> bool:
        """Whether the recipe is the preset for trained weights; a run that was begun before there was one keeps its."""
        if self.recipe is not None or not (self.weights is not None or self.pretrained or self.trained):
            return False
        resumed = self.resume and (self.folder / "run.json").is_file()
        begun = read_settings(self.folder)["settings"].get("recipe") if resumed else None
        return not isinstance(begun, Mapping) or Recipe.completed(begun) != as_recipe(None).model_dump(mode="json")

    @cached_property
    def constrained(self) -> Constraints:
        """What the search must leave as it is."""
        return Constraints.of(self.constraints)

    def base_epochs(self, trained: bool) -> int:
        """Return the epochs of trial 0: none where the network comes trained for the data."""
        usual = 0 if trained else self.training.epochs
        return self.epochs if self.epochs is not None else usual

    def repairs(self, trained: bool, settled: Mapping[str, bool] | None = None) -> Repairs:
        """Return what is repaired after a cut: all of it where the network comes trained, or as a run settled it."""
        usual = settled if settled is not None else {"merge": trained, "refit": trained}
        merge, refit = (
            usual.get(name, False) if given is None else given
            for name, given in (("merge", self.merge), ("refit", self.refit))
        )
        return Repairs(merge, refit, self.reestimate, self.calibration)

    @property
    def later_epochs(self) -> int:
        """Epochs of every other trial."""
        usual = self.training.epochs if self.finetunes else max(1, self.training.epochs // 2)
        return self.tune_epochs if self.tune_epochs is not None else usual

    @cached_property
    def time_budget(self) -> TimeBudget | None:
        """The time of all trials together; None: no limit."""
        return TimeBudget.parse(self.time) if self.time is not None else None

    @property
    def proxy(self) -> ProxyConfig | None:
        """What candidates are ranked on; None: all data."""
        return ProxyConfig.of(self.proxy_classes, self.proxy_samples, self.seed)

    def tell(self, text: str) -> None:
        """Hand a line for a person over."""
        if self.say is not None:
            self.say(text)
        elif self.progress:
            print(text, file=sys.stderr, flush=True)

    def check(self) -> None:
        """Refuse what is wrong whatever the network and the data are.

        Raises:
            ConvwrightError: Unknown method or option of it, negative numbers.
            BudgetError: There is no budget, and the method needs one.
            RecipeError: A technique of the recipe edits the network.
        """
        method, options = self.search
        if not self.budgets and method != PARETO:
            raise BudgetError(
                f"method {method} redesigns a network to a budget; give --budget, such as macs<=50%, or an "
                "objective, such as --objective accuracy,macs"
            )
        checked_options(method, options)
        refuse_structural(self.training)
        self.placement.check()
        check_counts(0, epochs=self.epochs or 0, seed=self.seed)
        check_counts(1, **{"tune-epochs": self.later_epochs}, calibration=self.calibration)
        if self.divisor != "auto":
            check_counts(1, divisor=self.divisor)
        metric: Metric = getattr(self.data, "metric", ACCURACY)
        most, what = (100, "points of {} from 0 to 100") if metric.unit == "%" else (math.inf, "a difference of {}")
        if self.max_drop is not None and not 0 <= self.max_drop <= most:
            raise ConvwrightError(f"max-drop={self.max_drop} must be {what.format(metric.name)}, such as 2")
        # These refuse what none of them can be.
        if self.target is not None:
            runtime_named(self.target.runtime).check(self.target)
        _ = self.terms, self.time_budget, self.constrained, parse_input(self.input_shape)

    def settings(self, loaded: LoadedModel, limits: Limits, proxy: Proxy | None = None) -> dict[str, Any]:
        """Return what the results depend on, as plain JSON values."""
        method, options = self.search
        shape = "x".join(map(str, loaded.data.shape))
        return {
            "model": loaded.arch.source,
            "options": loaded.options,
            "architecture": digest_of(loaded.arch),
            "data": f"{loaded.data.name} ({len(loaded.data.train)} training images {shape})",
            **loaded.data.metric.settings(),
            "budget": list(self.budgets),
            "limits": dict(limits.limits),
            "method": method,
            "recipe": self.training.model_dump(mode="json"),
            "epochs": self.base_epochs(loaded.trained),
            "tune_epochs": self.later_epochs,
            "divisor": self.divisor,
            "seed": self.seed,
            "weights": str(Path(self.weights)) if self.weights is not None else None,
            # Left out when there are none, so that runs started before there were such options are resumed.
            **({"pretrained": True} if self.pretrained else {}),
            **({"trained": True} if self.trained else {}),
            **({"method_options": options} if options else {}),
            **({"objective": list(self.costs)} if self.costs else {}),
            **({"constraints": self.constrained.settings()} if self.constrained else {}),
            **({"time": self.time_budget.text} if self.time_budget is not None else {}),
            **({} if self.baseline else {"baseline_trained": False}),
            **({} if self.reestimate else {"reestimate": False}),
            **{name: given for name in ("merge", "refit") if (given := getattr(self, name)) is not None},
            **({"calibration": self.calibration} if self.calibration != 512 else {}),
            **({"proxy": self.proxy.settings(proxy)} if self.proxy is not None and proxy is not None else {}),
        }


def documented(function: _Function) -> _Function:
    """Write what the arguments mean into the docstring of `optimize`, before what it returns."""
    before, returns, after = inspect.cleandoc(function.__doc__ or "").partition("Returns:")
    wrap = textwrap.TextWrapper(112, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines = [wrap.fill(f"{name}: {text}") for name, text in OPTIMIZE.items()]
    function.__doc__ = "\n".join([f"{before}Args:", *lines, "", returns + after])
    return function


def default_folder(
    model: nn.Module | str, budget: str | Sequence[str] = (), objective: str | Sequence[str] = ()
) -> Path:
    """Return ``runs/MODEL-BUDGET`` with nothing in it that a file system minds; costs sought come last."""
    name = model if isinstance(model, str) else type(model).__name__
    parts = [name, *([budget] if isinstance(budget, str) else budget)]
    parts += [objective] if isinstance(objective, str) else objective
    words = "-".join(part.replace("<=", "").replace("%", "pct") for part in parts)
    return Path("runs") / re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.").lower()


def terms_of(budget: Sequence[str]) -> Budget:
    """Read the texts of a budget; none of them is no limit.

    Raises:
        BudgetError: One does not parse.
    """
    return parse_budget(list(budget)) if budget else Budget(())


def digest_of(arch: Architecture) -> str:
    """Return a digest of the structure and of all shapes, without the weights."""
    state = [(name, tuple(tensor.shape)) for name, tensor in arch.model.state_dict().items()]
    return hashlib.sha256(f"{arch.model}{state}".encode()).hexdigest()[:16]
