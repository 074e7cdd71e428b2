"""Designs: how a row of a table changes its network, as data."""
