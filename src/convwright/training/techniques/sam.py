"""Sharpness-aware minimization: the gradient is taken where the loss around the weights is highest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import nn

from convwright.repair.batch_norm import kept_statistics
from convwright.training.techniques.technique import Card, Effect, Technique, Training, technique


def sam_gradients(model: nn.Module, again: Callable[[], object], rho: float = 0.05, *, adaptive: bool = False) -> None:
    """Replace the gradients by those at the worst weights within a distance of `rho`; the weights stay.

    Call it between ``backward`` and ``optimizer.step``.

    Args:
        model: Its parameters hold the gradients of the batch.
        again: Computes them anew on the same batch: forward pass, loss, backward pass.
        rho: Distance, in the norm over all parameters together.
        adaptive: Measure the distance relative to the size of each weight (ASAM).
    """
    from pytorch_optimizer import SAM

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    make: Any = lambda groups, **_: _Weights(groups)  # noqa: E731
    perturbation: Any = SAM(trained, base_optimizer=make, rho=rho, adaptive=adaptive)
    perturbation.first_step(zero_grad=True)
    try:  # the second pass must not mix in statistics of weights that the network never has
        with kept_statistics(model), torch.enable_grad():
            again()
    finally:
        perturbation.second_step()


class _Weights:
    """Stands in for the base optimizer: the library's SAM moves the weights there and back, and makes no step."""

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)

    def step(self) -> None:
        """Do nothing: the gradients are left to the optimizer of the training."""


@technique(
    "sam",
    Card(
        does="Goes to the worst weights within a distance rho, takes the gradient there, comes back and steps with it. "
        "Running statistics of batch norm are frozen in the second pass; the batch is the same in both.",
        cost="Two forward and backward passes per step: twice the time. `interval: k` does it in every k-th step only.",
        helps="Networks that overfit or were trained with large batches; the gain adds to averaging and mixing.",
        hurts="Where training time is what limits: twice the epochs without it often give more. Underfitting networks.",
        source="Foret et al. 2021; pytorch_optimizer.SAM.",
    ),
)
class Sam(Technique):
    """Options of sharpness-aware minimization.

    Attributes:
        rho: Distance, in the norm over all parameters together.
        adaptive: Measure the distance relative to the size of each weight (ASAM; needs a larger rho, about 0.5).
        interval: Do it in every so many steps.
    """

    rho: float = Field(0.05, gt=0, le=10, allow_inf_nan=False)
    adaptive: bool = False
    interval: int = Field(1, ge=1)

    def effect(self, training: Training) -> Effect:
        """Return the effect on gradients."""
        return _SamEffect(self, training.model)


class _SamEffect(Effect):
    def __init__(self, options: Sam, model: nn.Module) -> None:
        self.options, self.model = options, model

    def before_update(self, again: Callable[[], object], step: int) -> None:
        if step % self.options.interval == 0:
            sam_gradients(self.model, again, self.options.rho, adaptive=self.options.adaptive)
