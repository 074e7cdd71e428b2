"""Which channels a network misses least: importances of the weights alone, and of what calibration batches show."""

from convwright.edits.importance import observers, weights
from convwright.edits.importance.registry import IMPORTANCE, OBSERVERS, Observer, importance, observer, scores_for
from convwright.edits.importance.saliency import BatchLoss, block_losses, evaluated, loss_curve, mean_loss, saliency
from convwright.edits.importance.weights import l2

__all__ = [
    "IMPORTANCE", "OBSERVERS", "BatchLoss", "Observer", "block_losses", "evaluated", "importance", "l2", "loss_curve",
    "mean_loss", "observer", "observers", "saliency", "scores_for", "weights",
]  # fmt: skip
