"""Averaged weights, with equal weight (SWA) or exponentially falling ones (EMA); their batch norm is re-estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convwright.errors import RecipeError
from convwright.repair.batch_norm import reestimate_batch_norm
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique


def averaged_copy(model: nn.Module, decay: float | None = None) -> AveragedModel:
    """Return a copy of a network that averages weights: after each step or epoch, ``copy.update_parameters(model)``.

    Before it is judged, `reestimate_batch_norm(copy.module, batches)` is compulsory.

    Args:
        model: The network in training.
        decay: Weight of the average against the new weights (EMA); None: all count the same (SWA).
    """
    average = get_ema_multi_avg_fn(decay) if decay is not None else None  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average)


class AveragingEffect(Effect):
    """Keeps averaged weights, and leaves them in the network at the end.

    Args:
        training: The training.
        decay: See `averaged_copy`.
        due: Whether the weights after a step (from 0) enter the average.
    """

    finishes = True

    def __init__(self, training: Training, decay: float | None, due: Callable[[int], bool]) -> None:
        self.training = training
        self.averaged = averaged_copy(training.model, decay)
        self.due = due

    def after_step(self, step: int) -> None:
        """Let the weights enter the average where it is time."""
        if self.due(step):
            self.averaged.update_parameters(self.training.model)

    def finish(self) -> None:
        """Put the averaged weights into the network and re-estimate its batch norm on training batches."""
        if not int(self.averaged.n_averaged):
            return
        model = self.training.model
        with torch.no_grad():
            for mine, averaged in zip(model.parameters(), self.averaged.module.parameters(), strict=True):
                mine.copy_(averaged)
        reestimate_batch_norm(model, self.training.batches(), self.training.forward, frozen=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        weights = {name: p.detach() for name, p in self.averaged.module.named_parameters()}
        return {"averaged": int(self.averaged.n_averaged), "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the average."""
        self.averaged.n_averaged.fill_(state["averaged"])
        with torch.no_grad():
            for name, parameter in self.averaged.module.named_parameters():
                parameter.copy_(state["weights"][name])


@technique(
    "ema",
    Card(
        does="Averages the weights after each step, older ones with exponentially falling weight, re-estimates batch "
        "norm on a pass over the training images, and judges and hands back the average.",
        cost="A copy of the weights, its update per step (1 to 3 % on small networks), and one forward pass over the "
        "training images at the end.",
        helps="Trainings whose rate stays high until late: the average is as good as a lower rate, at any time.",
        hurts="Next to a one-cycle schedule that ends at zero it changes little; short trainings with a decay close to "
        "1 average weights from the beginning. Not with swa: both decide which weights are handed back.",
        source="Polyak and Juditsky 1992; torch.optim.swa_utils.get_ema_multi_avg_fn.",
    ),
)
class Ema(Technique):
    """Options of the exponential moving average.

    Attributes:
        decay: Weight of the average against the new weights, per update.
        start: Share of the training after which averaging begins.
        interval: Update in every so many steps.
    """

    decay: float = Field(0.99, gt=0, lt=1)
    start: float = Field(0.0, ge=0, lt=1)
    interval: int = Field(1, ge=1)

    excludes: ClassVar[Mapping[str, str]] = {"swa": "both decide which weights are handed back; keep one of them"}

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse an average that never begins, and warn of one that reaches back to the first weights."""
        updates = (setting.steps - round(self.start * setting.steps)) // self.interval
        if updates < 1:
            raise RecipeError(
                f"recipe field techniques.ema: none of the {setting.steps} steps is averaged; start earlier or lower "
                "interval"
            )
        if self.decay**updates > 0.1 and self.start == 0:
            return (
                f"techniques.ema.decay={self.decay:g}: after {updates} updates the first weights still count "
                f"{self.decay**updates:.0%}; lower decay",
            )
        return ()

    def effect(self, training: Training) -> AveragingEffect:
        """Return the effect on weights."""
        begin = round(self.start * training.setting.steps)
        return AveragingEffect(
            training, self.decay, lambda step: step >= begin and (step + 1 - begin) % self.interval == 0
        )


def swa_rate(factor: float, begin: float, target: float, done: float) -> float:
    """Return the rate after averaging began: from `begin` along a half cosine to `target`.

    Args:
        factor: The schedule's own rate now; used before averaging began (`done` below 0).
        begin: Rate when averaging began.
        target: Rate to hold.
        done: Share of the way from `begin` to `target`.
    """
    if done < 0:
        return factor
    return target + (begin - target) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@technique(
    "swa",
    Card(
        does="Averages the weights after each of the last epochs with equal weight, holds the learning rate meanwhile, "
        "re-estimates batch norm on a pass over the training images, and judges and hands back the average.",
        cost="A copy of the weights, and one forward pass over the training images at the end.",
        helps="Schedules that would end at a rate above zero; noisy trainings with small batches.",
        hurts="Next to a one-cycle schedule that ends at zero there is little left to average, and holding the rate "
        "costs what its end would have given. Not with ema: both decide which weights are handed back.",
        source="Izmailov et al. 2018; torch.optim.swa_utils.",
    ),
)
class Swa(Technique):
    """Options of stochastic weight averaging.

    Attributes:
        start: Share of the training after which averaging begins.
        lr: Share of the recipe's highest rate to hold from then on; None: the rate at that moment.
        anneal_epochs: Epochs until that rate is reached.
    """

    start: float = Field(0.75, ge=0, lt=1)
    lr: float | None = Field(None, gt=0, le=1)
    anneal_epochs: float = Field(1.0, ge=0)

    excludes: ClassVar[Mapping[str, str]] = {"ema": "both decide which weights are handed back; keep one of them"}

    def begin(self, setting: TechniqueContext) -> int:
        """Return the first step of averaging: of an epoch, so that each that counts was trained at its rate."""
        return math.ceil(self.start * setting.steps / setting.steps_per_epoch) * setting.steps_per_epoch

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Refuse an average that is longer than the training."""
        if self.begin(setting) >= setting.steps:
            raise RecipeError(
                f"recipe field techniques.swa.start={self.start:g}: of {setting.steps / setting.steps_per_epoch:.3g} "
                "epochs none is left to average; train longer or start earlier"
            )
        return ()

    def effect(self, training: Training) -> AveragingEffect:
        """Return the effect on rates and weights."""
        return _SwaEffect(self, training)


class _SwaEffect(AveragingEffect):
    def __init__(self, options: Swa, training: Training) -> None:
        self.options, self.begin = options, options.begin(training.setting)
        super().__init__(training, None, self._ends_an_epoch)

    def _ends_an_epoch(self, step: int) -> bool:
        setting = self.training.setting
        return step >= self.begin and ((step + 1) % setting.steps_per_epoch == 0 or step + 1 == setting.steps)

    def rate(self, factor: float, step: int) -> float:
        if step < self.begin:
            return factor
        begin = self.training.rate(self.begin)
        target = begin if self.options.lr is None else self.options.lr
        length = self.options.anneal_epochs * self.training.setting.steps_per_epoch
        return swa_rate(factor, begin, target, (step - self.begin) / length if length else 1.0)
