"""Designs: decisions about a network that rows of an experiment name, as data."""
