"""Saliency: what a trained network misses least, and the widths and blocks that lose the least within a budget."""

from convwright.methods.saliency.allocate import Allocation, allocate, allocation
from convwright.methods.saliency.saliency import Saliency, SaliencyOptions, blocks_worth

__all__ = ["Allocation", "Saliency", "SaliencyOptions", "allocate", "allocation", "blocks_worth"]
