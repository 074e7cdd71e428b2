"""Rivals at equal compute: uniform widths, torch-pruning, TPE by Optuna, and our own methods beside them."""
