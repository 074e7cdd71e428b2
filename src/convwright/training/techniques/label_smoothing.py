"""Label smoothing: part of the target is spread over all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from convwright.training.techniques.technique import Card, field_technique

field_technique(
    "label_smoothing",
    Card(
        does="Replaces the target 1 for the right class by 1 - a + a / K and gives a / K to each of the K classes.",
        cost="None that can be measured.",
        helps="Networks that fit their training data almost completely; scores become less extreme.",
        hurts="Networks of a few thousand parameters, which underfit. The training loss no longer goes to zero.",
        source="Szegedy et al. 2016; torch.nn.CrossEntropyLoss(label_smoothing=).",
    ),
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.0},
)


def smoothed(labels: Tensor, num_classes: int, amount: float = 0.1) -> Tensor:
    """Return smoothed targets, for losses that take shares instead of class numbers.

    Args:
        labels: (n,) int64.
        num_classes: K.
        amount: a, the share that is spread over all classes.

    Returns:
        (n, K) float32, rows summing to 1.
    """
    hard = torch.nn.functional.one_hot(labels, num_classes).float()
    return torch.lerp(hard, torch.full_like(hard, 1 / num_classes), amount)
