"""Optimizers by name, with the recipe's values put where each one expects them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convwright.errors import RecipeError, did_you_mean, first_line
from convwright.training.recipe.recipe import Recipe
from convwright.training.techniques import TECHNIQUES

OptimizerState = Mapping[str, Mapping[str, Any]]
_FIELDS = ("lr", "momentum", "weight_decay", "nesterov")  # of the recipe, given to each optimizer that has them
_DEPTHS = 4  # between the first and the last layer


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Find an optimizer in torch.optim, else timm.optim, else pytorch_optimizer; case is ignored.

    Raises:
        RecipeError: No such optimizer, or one whose step needs a closure.
    """
    members, base, lower = inspect.getmembers(torch.optim, inspect.isclass), torch.optim.Optimizer, name.lower()
    known = {name.lower(): kind for name, kind in members if issubclass(kind, base) and kind is not base}
    found = known.get(lower) or _timm_optimizer(lower) or _other_optimizer(lower)
    if found is None:
        raise RecipeError(
            f"recipe field optimizer: unknown optimizer {name!r}.{did_you_mean(lower, (*known, *_timm_names()))} "
            "Names are those of torch.optim, timm.optim and pytorch_optimizer"
        )
    if lower in TECHNIQUES:  # pytorch_optimizer wraps some into optimizers around optimizers
        raise RecipeError(f"recipe field optimizer: {name!r} is a technique; write techniques: {{{lower}: {{}}}}")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RecipeError(f"recipe field optimizer: {name!r} needs several passes per step; choose another one")
    return found


def _timm_names() -> list[str]:
    from timm.optim import list_optimizers  # type: ignore[attr-defined]  # re-exported without `as`

    return [str(name) for name in list_optimizers()]


def _timm_optimizer(name: str) -> type[torch.optim.Optimizer] | None:
    from timm.optim import get_optimizer_class  # type: ignore[attr-defined]  # re-exported without `as`

    found = get_optimizer_class(name, bind_defaults=False) if name in _timm_names() else None
    return found if inspect.isclass(found) else None


def _other_optimizer(name: str) -> type[torch.optim.Optimizer] | None:
    import pytorch_optimizer

    members = {member.lower(): member for member in dir(pytorch_optimizer)}
    found = getattr(pytorch_optimizer, members.get(name, ""), None)
    return found if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) else None


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the trainable parameters of `model`.

    Raises:
        RecipeError: Unknown optimizer or option, or nothing to train.
    """
    kind = optimizer_class(recipe.optimizer)
    _check_options(kind, recipe)
    groups = _groups(model, recipe)
    if not groups:
        raise RecipeError("the network has no trainable parameter; set requires_grad on some")
    options = {**_options(kind, recipe), **recipe.optimizer_options}
    try:
        return kind(groups, **options)
    # Each library refuses in its own way; whatever it is, it is about the options: nothing else is given.
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise RecipeError(
            f"recipe field optimizer: {recipe.optimizer!r} refuses its options: {first_line(error)}; change "
            "optimizer_options, or the field that it names"
        ) from error


def no_effect(recipe: Recipe) -> tuple[str, ...]:
    """Return a line per field of the recipe that its optimizer does not have.

    Raises:
        RecipeError: Unknown optimizer, Nesterov momentum of 0, or a schedule that moves a momentum that is not there.
    """
    accepted = _accepted(optimizer_class(recipe.optimizer))
    if "nesterov" in accepted and recipe.nesterov and recipe.momentum == 0:
        raise RecipeError(
            "recipe field nesterov=True: there is no Nesterov step with momentum=0; set nesterov: false, or momentum"
        )
    has_momentum = bool({"momentum", "betas"} & set(accepted))
    if not has_momentum and recipe.schedule_options.get("cycle_momentum"):
        raise RecipeError(
            f"recipe field schedule_options.cycle_momentum: optimizer {recipe.optimizer!r} has no momentum; "
            "set cycle_momentum: false, or choose another optimizer"
        )
    lines = []
    if recipe.momentum and not has_momentum:
        lines.append(f"momentum={recipe.momentum:g} has no effect: optimizer {recipe.optimizer!r} has no momentum")
    if recipe.weight_decay and "weight_decay" not in accepted:
        lines.append(f"weight_decay={recipe.weight_decay:g} has no effect: optimizer {recipe.optimizer!r} has none")
    return tuple(lines)


def _accepted(kind: type[torch.optim.Optimizer]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters


def _check_options(kind: type[torch.optim.Optimizer], recipe: Recipe) -> None:
    accepted = _accepted(kind)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    known = [name for name in accepted if name not in ("self", "params", *_FIELDS)]
    for name in recipe.optimizer_options:
        if name in _FIELDS:
            raise RecipeError(f"recipe field optimizer_options.{name}: write it as the field {name}")
        if name not in accepted and not takes_any:
            raise RecipeError(
                f"unknown recipe field 'optimizer_options.{name}': optimizer {recipe.optimizer!r} has no such option."
                f"{did_you_mean(name, known)} It has {', '.join(known)}"
            )


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    shares = _shares(model, recipe)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 and not recipe.decay_norm_and_bias
            groups.setdefault((plain, -shares.get(id(parameter), 1.0)), []).append(parameter)
    return [
        {"params": parameters}
        | ({"weight_decay": 0.0} if plain else {})
        | ({"lr": -share * _rate(recipe)} if share != -1 else {})
        for (plain, share), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _shares(model: nn.Module, recipe: Recipe) -> dict[int, float]:
    """Return which share of the rate each parameter learns with, by identity, where shares are not all 1.

    Layers stand in the order in which the network holds them. Layers of about the same depth share a group, as an
    optimizer's step takes longer with more groups.
    """
    if recipe.lr_first_factor == recipe.lr_head_factor == 1:
        return {}
    classifier = getattr(model, "get_classifier", lambda: None)()  # of timm's networks
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    head = classifier if isinstance(classifier, nn.Module) and list(classifier.parameters()) else layers[-1]
    last = {id(parameter): recipe.lr_head_factor for parameter in head.parameters()}
    body = [layer for layer in layers if not {id(p) for p in layer.parameters(recurse=False)} <= last.keys()]
    shares: dict[int, float] = {}
    for place, layer in enumerate(body):
        depth = round(_DEPTHS * place / max(1, len(body) - 1)) / _DEPTHS
        for parameter in layer.parameters(recurse=False):
            shares.setdefault(id(parameter), recipe.lr_first_factor ** (1 - depth))
    return shares | last


def _rate(recipe: Recipe) -> float:
    return 1e-3 if recipe.lr == "auto" else recipe.lr  # before it is found, the optimizer is built to be checked only


def _options(kind: type[torch.optim.Optimizer], recipe: Recipe) -> dict[str, Any]:
    accepted = _accepted(kind)
    options: dict[str, Any] = {
        "lr": _rate(recipe),
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
    }
    if "betas" in accepted:
        options["betas"] = (recipe.momentum, *accepted["betas"].default[1:])
    return {name: value for name, value in options.items() if name in accepted}


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the momentum of a parameter group, or the first beta of Adam's family; others have none."""
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum


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
            raise RecipeError(
                f"optimizer state for {name!r}, which the network does not have.{did_you_mean(name, parameters)}"
            )
        parameter = parameters[name]
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise RecipeError(
                    f"optimizer state {key!r} of {name!r} has shape {tuple(value.shape)} and the "
                    f"parameter {tuple(parameter.shape)}; apply one plan to both or start without"
                )
        optimizer.state[parameter] = {key: _copied(value, parameter) for key, value in values.items()}


def _copied(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Step counters are scalars and stay where the optimizer keeps them: on the CPU.
    return value.detach().clone().to(parameter.device) if value.ndim else value.detach().clone()
