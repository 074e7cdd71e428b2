"""Methods ``auto`` and ``pareto``: the published methods combined after one first training."""

from convwright.methods.auto import pareto  # noqa: F401 - registers its methods
from convwright.methods.auto.auto import Auto

__all__ = ["Auto"]
