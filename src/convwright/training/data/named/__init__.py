"""Data sets by name: one file each, found by itself.

A new one is a file here with a function under ``@data_set("name")`` that returns its parts.
"""

from __future__ import annotations

import importlib
import pkgutil

from convwright.training.data.named.registry import DATA_SETS, DataSet, Request, data_set, data_set_named

__all__ = ["DATA_SETS", "DataSet", "Request", "data_set", "data_set_named"]

# Importing a file registers its data sets: a new one is one new file and nothing here changes.
for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")
