"""Capture: from a model to the graph of operators that it executes."""
