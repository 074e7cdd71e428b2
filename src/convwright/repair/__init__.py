"""Repair of edited networks with data and without training: running statistics of batch norms."""

from convwright.repair.batch_norm import kept_statistics, reestimate_batch_norm, stale

__all__ = ["kept_statistics", "reestimate_batch_norm", "stale"]
