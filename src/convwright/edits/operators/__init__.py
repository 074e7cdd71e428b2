"""The operators that a ``Replace`` edit can put in a layer's place.

>>> from convwright.edits.operators import OPERATORS
>>> OPERATORS["dw_separable"].doc
'Depthwise convolution of the same kernel, then a 1x1 convolution.'
"""

from __future__ import annotations

import importlib
import pkgutil

from convwright.edits.operators.registry import OPERATORS, OperatorEntry, Site, build, check_options, operator

__all__ = ["OPERATORS", "OperatorEntry", "Site", "build", "check_options", "operator"]

# Importing a file registers its operators: a new operator is one new file and nothing here changes.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
