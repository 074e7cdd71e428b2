"""The old place of `convwright.diagnose.doctor`."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("convwright.diagnose.doctor"), name)
