"""Edits in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from convwright.edits.edit import Edit
from convwright.edits.kernel import Kernel
from convwright.edits.replace import Replace
from convwright.edits.resolution import Resolution
from convwright.edits.width import Width


def summary(edit: Edit) -> str:
    """Return an edit in a few words, as far as it is known without its network."""
    values = {name: value for name, value in edit.to_dict().items() if name != "edit"}
    kind, target = edit.kind.replace("_", " "), str(values.pop("target", ""))
    mark = "  (approximate)" if values.pop("approximate", False) else ""
    if isinstance(edit, Width | Kernel | Resolution):
        goal = f" -> {edit.size if isinstance(edit.size, int) else shape_words(edit.size)}"
    elif isinstance(edit, Replace):
        goal = f" -> {operator_words(edit)}"
    else:
        goal = "".join(f", {name} {value}" for name, value in values.items())
    return f"{kind}{f' {target}' if target else ''}{goal}{mark}"


def operator_words(edit: Replace) -> str:
    """Return the operator that an edit puts in, with its options."""
    options = ", ".join(f"{name}={value}" for name, value in edit.options.items())
    return f"{edit.operator}({options})" if options else edit.operator


def shape_words(sizes: Sequence[object]) -> str:
    """Return sizes as ``3x32x32``."""
    return "x".join(map(str, sizes))
