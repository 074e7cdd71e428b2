"""All parameters of a network drawn anew, as its layers draw them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from convwright.edits.surgery import named_tensors
from convwright.errors import EditError


def draw_anew(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew and reset running statistics, in place; the network's structure stays.

    Each module's ``reset_parameters()`` is called, parts before the whole: PyTorch's layers have it, and a network
    that initialises its layers in a way of its own can have one, too. What a constructor does besides is not known
    here. A parameter that nobody draws keeps its value if that is the same everywhere (a scale that starts at 1).
    The process's random generators are left as they were; the same seed gives the same weights on any device.

    Args:
        model: The network.
        seed: Of all draws.

    Raises:
        EditError: A parameter is drawn by nobody; names it and its module. Nothing is changed then.
    """
    devices = {name: parameter.device for name, parameter in model.named_parameters()}
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    device = next(iter(devices.values()), torch.device("cpu"))
    model.cpu()  # drawn there, so that the device makes no difference
    try:
        _draw(model, seed, before)
    except BaseException:
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(before[name])
        raise
    finally:
        model.to(device)


def _draw(model: nn.Module, seed: int, before: dict[str, Tensor]) -> None:
    parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in parameters.values():
            parameter.fill_(torch.nan)  # what is still there afterwards was drawn by nobody
        torch.manual_seed(seed)
        for module in reversed(list(model.modules())):
            reset = _reset_of(module)
            if reset is not None:
                reset()
        for name, parameter in parameters.items():
            if bool(torch.isnan(parameter).any()):
                parameter.copy_(_constant(model, name, before[name]))


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """Return what draws a module's own parameters; None where it has nothing that works without arguments."""
    # MultiheadAttention's is private.
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(found):
        return None
    try:
        inspect.signature(found).bind()
    except TypeError:
        return None
    reset: Callable[[], object] = found
    return reset


def _constant(model: nn.Module, name: str, value: Tensor) -> Tensor:
    if value.numel() and bool((value == value.flatten()[0]).all()):
        return value
    path = name.rpartition(".")[0]
    kind = type(model.get_submodule(path)).__name__
    raise EditError(
        f"{name} cannot be drawn anew: {kind} has no reset_parameters() that draws it. Give {kind} one, or start from "
        "trained weights."
    )
