"""Where residual branches end, as modules: the place for what scales or drops a whole branch."""

from __future__ import annotations

from dataclasses import dataclass

from convwright.architecture.architecture import Architecture
from convwright.architecture.blocks import branch_values
from convwright.architecture.capture.exported import describe, operator_name, shape_of
from convwright.architecture.flow import Block, Flow

# Operators that may stand behind the module: a factor per image, zero included, passes through them unchanged.
_SCALED_ALIKE = frozenset({
    "relu", "leaky_relu", "dropout", "feature_dropout", "clone", "contiguous", "alias", "mul", "neg", "permute",
    "transpose", "view", "reshape", "flatten", "unflatten", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d",
})  # fmt: skip


@dataclass(frozen=True)
class BranchEnd:
    """The end of one branch of a residual block.

    Attributes:
        block: the block's name.
        module: the innermost module whose output is the branch's value, up to operators that a factor per image
            passes through; empty if there is none.
        reason: why there is none; else empty.
    """

    block: str
    module: str
    reason: str = ""


def branch_ends(architecture: Architecture) -> tuple[BranchEnd, ...]:
    """Return the ends of all residual branches, in execution order of their blocks."""
    flow = architecture.flow
    residual = [block for block in architecture.blocks if block.join]
    return tuple(_end(flow, block, flow.position[node]) for block in residual for node in branch_values(flow, block))


def _end(flow: Flow, block: Block, position: int) -> BranchEnd:
    join, last = flow.place[block.join], position
    rows = shape_of(flow.nodes[join])[:1]
    while True:
        module = _giver(flow, position, join)
        if module and shape_of(flow.nodes[position])[:1] == rows:
            return BranchEnd(block.name, module)
        feeds = flow.feeds[position]
        passes = operator_name(flow.nodes[position]) in _SCALED_ALIKE and len(feeds) == 1
        if not passes or len(flow.users[position]) != 1 or flow.nodes[feeds[0]].name == block.entry:
            return BranchEnd(
                block.name, "", f"the end of its branch is no module's output ({describe(flow.nodes[last])})"
            )
        position = feeds[0]


def _giver(flow: Flow, position: int, join: int) -> str:
    """Return the innermost module, called once, that gives a node's value and nothing else, to one place."""
    if len(flow.users[position]) != 1:
        return ""
    path = flow.paths[position]
    for length in range(len(path), 0, -1):
        region = flow.region(path[:length])
        name = ".".join(path[:length])
        leaving = {n for n in region if any(user not in region for user in flow.users[n])}
        if name in flow.called and leaving == {position} and join not in region:
            return name
    return ""
