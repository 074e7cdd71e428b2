"""Edits of width, depth, kernels, operators, resolution; plans; the surgery that keeps the weights."""

from convwright.edits.constraints import Constraints
from convwright.edits.depth import AddBlock, RemoveBlock
from convwright.edits.edit import EDITS, Change, Edit
from convwright.edits.execution_check import Checked, check_execution, scale_widths
from convwright.edits.importance import IMPORTANCE, importance, saliency
from convwright.edits.kernel import Kernel
from convwright.edits.origins import kept_channels, kept_entries, origin_of
from convwright.edits.plan import InexactEditWarning, Plan, apply
from convwright.edits.preview import GroupChange, Step, preview, tree
from convwright.edits.replace import Replace
from convwright.edits.resolution import Resolution
from convwright.edits.width import Width, round_width, solve

__all__ = [
    "EDITS", "IMPORTANCE", "AddBlock", "Change", "Checked", "Constraints", "Edit", "GroupChange",
    "InexactEditWarning", "Kernel", "Plan", "RemoveBlock", "Replace", "Resolution", "Step", "Width", "apply",
    "check_execution", "importance", "kept_channels", "kept_entries", "origin_of", "preview", "round_width",
    "saliency", "scale_widths", "solve", "tree",
]  # fmt: skip
