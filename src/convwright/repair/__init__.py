"""Repair of edited networks with data and without training: running statistics of batch norms, weights of consumers."""

from convwright.repair.batch_norm import kept_statistics, reestimate_batch_norm, stale
from convwright.repair.consumers import Repaired
from convwright.repair.merge import merge
from convwright.repair.refit import refit

__all__ = ["Repaired", "kept_statistics", "merge", "reestimate_batch_norm", "refit", "stale"]
