"""Baselines at equal compute: uniform widths, torch-pruning, the TPE of Optuna, and our own methods."""
