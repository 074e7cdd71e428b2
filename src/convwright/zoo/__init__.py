"""The model zoo: networks of the papers behind convwright, in plain PyTorch.

    >>> from convwright import zoo
    >>> model = zoo.create("resnet20", num_classes=100)

Every network is made of ordinary modules, takes any image size its strides allow, and keeps no
channel count outside the layers that own it, so all of its widths can be changed afterwards.
"""

from __future__ import annotations

import importlib
import pkgutil

from convwright.zoo.registry import ZooEntry, create, entry, names, register

__all__ = ["ZooEntry", "create", "entry", "names", "register"]

# Importing a family file registers its networks, so adding a file here is all it takes to add a family.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
