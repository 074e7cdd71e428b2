"""``greedy`` and ``scaling``: where more MACs should go, in width, depth or resolution."""

from convwright.methods.enlarging import compound  # noqa: F401 - registers its methods
from convwright.methods.enlarging.greedy import Chosen, GreedyEnlarging, Judgements, Member, Refined

__all__ = ["Chosen", "GreedyEnlarging", "Judgements", "Member", "Refined"]
