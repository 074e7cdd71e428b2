"""Losses that several tasks share."""

from __future__ import annotations

import torch  # noqa: F401 - of the example
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the Kullback-Leibler divergence of softened class probabilities from those of a teacher.

    Args:
        scores: (n, classes, ...) of the network in training.
        taught: The same of the teacher.
        temperature: What both are divided by; the loss is multiplied by its square, so that gradients keep their size.

    Returns:
        Mean over everything but the classes, shape ().

    Examples:
        >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), 4.0).item()
        0.0
    """
    own, other = (F.log_softmax(each.float() / temperature, dim=1) for each in (scores, taught))
    return F.kl_div(own, other, reduction="none", log_target=True).sum(1).mean() * temperature**2


def count_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many of the (batch, classes) scores are largest at the label, as a tensor."""
    return (scores.argmax(1) == labels).sum()
