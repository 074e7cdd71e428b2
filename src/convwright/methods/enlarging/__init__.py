"""Methods ``greedy`` and ``scaling``: where more MACs should go: width, depth or resolution."""

from convwright.methods.enlarging import compound  # noqa: F401 - registers its methods
from convwright.methods.enlarging.greedy import FamilyNetwork, GreedyEnlarging

__all__ = ["FamilyNetwork", "GreedyEnlarging"]
