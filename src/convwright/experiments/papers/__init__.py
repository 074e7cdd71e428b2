"""The papers' tables as data: what to train, and what the paper reports."""

import importlib
import pkgutil

from convwright.experiments.row import EXPERIMENTS, SIZES, Conclusion, Experiment, Row, Size

__all__ = ["EXPERIMENTS", "SIZES", "Conclusion", "Experiment", "Row", "Size"]

# Importing a file registers its experiments: a new one is one new file, or a folder with its `rows`.
for _found in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.ispkg):
    importlib.import_module(f"{__name__}.{_found.name}{'.rows' if _found.ispkg else ''}")
