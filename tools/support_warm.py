"""Imported once, before the processes of the matrix are forked: what they import at first use is there by then."""

from __future__ import annotations

import support_edits
import timm  # noqa: F401
import torch_pruning  # noqa: F401
import torchvision.models  # noqa: F401

_SUBJECT, _ = support_edits.read("zoo:resnet20")
for _ in support_edits.measure(_SUBJECT, ("shrink", "replace")):
    pass
