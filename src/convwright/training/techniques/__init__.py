"""Training techniques such as mixup or SAM: functions for your own loop, and fields of a recipe."""

import importlib
import pkgutil

from convwright.training.techniques.technique import (
    TECHNIQUES,
    Card,
    Effect,
    Entry,
    Teacher,
    Technique,
    TechniqueContext,
    Training,
    made,
    technique,
    technique_named,
)

__all__ = [
    "TECHNIQUES", "Card", "Effect", "Entry", "Teacher", "Technique", "TechniqueContext", "Training", "made",
    "technique", "technique_named",
]  # fmt: skip

# Importing a file registers its techniques: a new one is one new file and nothing here changes.
for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")

Setting = TechniqueContext  # the old name
