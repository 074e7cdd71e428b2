"""Optimizers by name, with the recipe's values put where each one expects them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convwright.errors import RecipeError, did_you_mean
from convwright.training.recipe import Recipe

OptimizerState = Mapping[str, Mapping[str, Any]]


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Find an optimizer in torch.optim, else timm.optim, else pytorch_optimizer; case is ignored.

    Raises:
        RecipeError: No such optimizer, or one whose step needs a closure.
    """
    known = _torch_optimizers()
    found = known.get(name.lower()) or _timm_optimizer(name) or _other_optimizer(name)
    if found is None:
        raise RecipeError(
            f"unknown optimizer {name!r}.{did_you_mean(name.lower(), known)} "
            "Names are those of torch.optim, timm.optim and (if installed) pytorch_optimizer"
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RecipeError(f"optimizer {name!r} needs several passes per step; choose another one")
    return found


def _torch_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    members = inspect.getmembers(torch.optim, inspect.isclass)
    return {
        name.lower(): kind
        for name, kind in members
        if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }


def _timm_optimizer(name: str) -> type[torch.optim.Optimizer] | None:
    from timm.optim import (  # type: ignore[attr-defined]  # re-exported without `as`
        get_optimizer_class,
        list_optimizers,
    )

    if name.lower() not in list_optimizers():
        return None
    found = get_optimizer_class(name.lower(), bind_defaults=False)
    return found if inspect.isclass(found) else None


def _other_optimizer(name: str) -> type[torch.optim.Optimizer] | None:
    try:
        import pytorch_optimizer
    except ImportError:
        return None
    lower = {member.lower(): member for member in dir(pytorch_optimizer)}
    found = getattr(pytorch_optimizer, lower.get(name.lower(), ""), None)
    is_optimizer = inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)
    return found if is_optimizer else None


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the trainable parameters of `model`.

    Raises:
        RecipeError: Unknown optimizer or option, or nothing to train.
    """
    kind = optimizer_class(recipe.optimizer)
    groups = _groups(model, recipe)
    if not groups:
        raise RecipeError("the network has no trainable parameter; set requires_grad on some")
    options = {**_options(kind, recipe), **recipe.optimizer_options}
    try:
        return kind(groups, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"optimizer {recipe.optimizer!r} refuses its options: {error}") from error


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 or recipe.decay_norm_and_bias
            (decayed if decays else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _options(kind: type[torch.optim.Optimizer], recipe: Recipe) -> dict[str, Any]:
    accepted = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
    }
    if "betas" in accepted:
        rest = tuple(accepted["betas"].default)[1:]
        options["betas"] = (recipe.momentum, *rest)
    return {name: value for name, value in options.items() if name in accepted}


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state under the names of the parameters (shared ones once)."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Give the optimizer a state as `state_by_name` returns it; values are copied to the device.

    Raises:
        RecipeError: An unknown parameter, or a moment that does not fit its parameter.
    """
    parameters = dict(model.named_parameters())
    for name, values in state.items():
        if name not in parameters:
            hint = did_you_mean(name, parameters)
            raise RecipeError(f"optimizer state for {name!r}, which the network does not have.{hint}")
        parameter = parameters[name]
        _check_moments(name, parameter, values.items())
        optimizer.state[parameter] = {key: _copied(v, parameter) for key, v in values.items()}


def _check_moments(name: str, parameter: Tensor, values: Iterable[tuple[str, Any]]) -> None:
    for key, value in values:
        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
            raise RecipeError(
                f"optimizer state {key!r} of {name!r} has shape {tuple(value.shape)} and the "
                f"parameter {tuple(parameter.shape)}; apply one plan to both or start without"
            )


def _copied(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Step counters are scalars and stay where the optimizer keeps them: on the CPU.
    return value.detach().clone().to(parameter.device) if value.ndim else value.detach().clone()
