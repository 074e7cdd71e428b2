"""What SWA and EMA share: averaged weights beside those in training, and batch norm re-estimated for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convwright.repair.batch_norm import reestimate_batch_norm
from convwright.training.techniques.technique import Effect, Training


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
