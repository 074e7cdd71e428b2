"""DIAGNOSE: what a network is, what it costs, and what of it can be changed."""
