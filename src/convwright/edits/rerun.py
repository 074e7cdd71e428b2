"""The proof by execution: a changed network runs once, and what it executes must be what the labels predict."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

from torch import fx, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.capture import capture
from convwright.architecture.capture.graph import (
    Capture,
    depends_on_values,
    describe,
    in_mode,
    operator_name,
    shape_of,
    sizes_of,
)
from convwright.architecture.capture.recorded import record
from convwright.architecture.channels import ChannelGraph
from convwright.errors import ReadError


def executed(architecture: Architecture, changed: nn.Module, after: ChannelGraph) -> Capture | None:
    """Run a changed copy of a network, and return what it executes where that is what was predicted.

    Args:
        architecture: the network as it is.
        changed: its copy with other widths.
        after: the channel analysis under these widths.

    Returns:
        The capture of the copy; None where it does not run, or executes something else or other shapes.
    """
    try:
        found = capture(changed, architecture.inputs, architecture.captured)
    except ReadError:
        return None
    return None if first_deviation(after, found) else found


def branch_on_values(architecture: Architecture) -> str:
    """Return the line at which other values, of the input or at random, make the code take other steps; "" if none."""
    with in_mode(architecture.model, training=False):
        found = record(architecture.model, architecture.inputs.random(0), as_far_as_it_comes=True, seed=1)
    looked = ""  # where the code last looked at values
    for before, now in zip(_operators(architecture.capture), _operators(found), strict=False):
        if before.target is not now.target:
            return looked or describe(before)
        if operator_name(before) in ("item", "_local_scalar_dense", "is_nonzero"):
            looked = describe(before)
    return ""


def changing_axes(architecture: Architecture, changed: nn.Module, reshapes: Collection[fx.Node]) -> dict[str, int]:
    """Run a copy with other widths, as far as it comes, and return which axis of some reshapes takes the change."""
    with in_mode(changed, training=False):
        found = record(changed, architecture.inputs, as_far_as_it_comes=True)
    axes = {}
    for before, now in zip(_operators(architecture.capture), _operators(found), strict=False):
        if before.target is not now.target:
            break
        pairs = enumerate(zip(shape_of(before), shape_of(now), strict=False))
        moved = [axis for axis, (old, new) in pairs if old != new]
        if before in reshapes and len(moved) == 1:
            axes[before.name] = moved[0]
    return axes


def first_deviation(after: ChannelGraph, found: Capture) -> str:
    """Return where a capture is not what was predicted: the operator, and what it gives; "" if nowhere."""
    expected = after.follower.capture
    pairs = [(expected, found, "")]
    if expected.training is not None and found.training is not None:
        pairs.append((expected.training, found.training, "training/"))
    for one, other, prefix in pairs:
        old, new = list(_operators(one)), list(_operators(other))
        behind: set[fx.Node] = set()  # what depends on the values of the data: no promise
        for before, now in zip(old, new, strict=False):
            if before.target is not now.target:
                return "" if behind else f"it executes {describe(now)} in place of {describe(before)}"
            sources = {n.args[0] if n.target is operator.getitem else n for n in before.all_input_nodes}
            if depends_on_values(before) or behind & sources:
                behind.add(before)
                continue
            predicted = after.follower.values.get(prefix + before.name)
            shapes = [value.shape for value in (predicted if isinstance(predicted, list) else [predicted]) if value]
            if shapes != _shapes(now) and operator_name(now) not in _BROADCAST:
                return f"{describe(now)} gives {_shapes(now)} instead of {shapes}"
        if len(old) != len(new) and not behind:
            return f"it executes {len(new)} operators in place of {len(old)}"
    return ""


_BROADCAST = ("expand", "expand_as", "broadcast_to")  # an axis that carries no channels becomes as long as another


def _operators(found: Capture) -> Iterator[fx.Node]:
    return (n for n in found.graph.nodes if n.op == "call_function" and n.target is not operator.getitem)


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    value = node.meta.get("val")
    return [sizes_of(each) for each in (value if isinstance(value, tuple | list) else [value])]
