"""What a training leaves behind: a record per epoch, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convwright.edits import Plan
from convwright.training.recipe.optimizers import OptimizerState
from convwright.training.settings import Settings
from convwright.training.tasks.base import Metrics


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the epoch's images, while the weights move, label smoothing included.
        train_acc: Accuracy on the augmented training images, likewise; None of a task other than classification.
        val_loss: Mean loss on the validation part after the epoch; None without one, or where the task tells none.
        val_acc: Accuracy there; of another task the metric that ranks, so that more is better.
        lr: Learning rate of the last step.
        seconds: Wall time of training and validation.
    """

    epoch: int
    train_loss: float
    train_acc: float | None
    val_loss: float | None
    val_acc: float | None
    lr: float
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What `train` returns.

    Attributes:
        model: The network that was given, trained in place; an edited copy of it where the recipe has techniques
            that edit. It has the weights of the last epoch, or their average where the recipe averages.
        history: One record per epoch, of the weights in training.
        val: Validation metrics of `model` at the end; None without a validation part.
        test: Test metrics, read once at the end; None if not asked for or not there.
        seconds: Wall time of all epochs, over all resumed runs.
        settings: Precision, layout and the measurement that chose them.
        test_flip: Test metrics with scores averaged over each image and its mirror image, where the recipe has
            ``test_flip``.
        plan: What the recipe's techniques edited before training; None for nothing.
        warnings: Settings of the recipe that have no effect here, one line each.
        probes: What the probes found, by name, as plain JSON values.
        stopped: Whether the training was ended before its last step, by the rule to stop or by `on_epoch`.
        reestimated: Images on which batch norm was re-estimated before each judgement, the training having been too
            short for its momentum; 0: it was not.
        optimizer_state: The optimizer's state by parameter name, for `train(optimizer_state=...)`.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    val: Metrics | None
    test: Metrics | None
    seconds: float
    settings: Settings
    optimizer_state: OptimizerState
    test_flip: Metrics | None = None
    plan: Plan | None = None
    warnings: tuple[str, ...] = ()
    probes: Mapping[str, Any] = field(default_factory=dict)
    stopped: bool = False
    reestimated: int = 0

    @property
    def last(self) -> EpochRecord:
        """The last epoch."""
        return self.history[-1]

    @property
    def best(self) -> EpochRecord:
        """The epoch with the best validation accuracy; without validation that of training, or else of the loss."""
        judged = ((each.val_acc, each.train_acc, -each.train_loss) for each in self.history)
        known = [next(value for value in values if value is not None) for values in judged]
        return self.history[known.index(max(known))]
