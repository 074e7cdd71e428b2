"""Saliency: what a trained network misses least, and the widths and blocks that lose the least within a budget."""

from convwright.methods.saliency.allocate import Allocation, allocate, allocation
from convwright.methods.saliency.rounds import Cutting, blocks_worth
from convwright.methods.saliency.saliency import Saliency, SaliencyOptions

__all__ = ["Allocation", "Cutting", "Saliency", "SaliencyOptions", "allocate", "allocation", "blocks_worth"]
