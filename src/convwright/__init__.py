"""Redesign convolutional networks to a budget, with the trained weights kept and every number proved."""

__version__ = "0.1.0"
