"""Optimizers follow an edit: parameters, and the state that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from convwright.edits.edit import Moved


def optimizer_follows(optimizer: Any, model: nn.Module, moved: Mapping[int, Moved]) -> None:
    """Put a changed copy's parameters into an optimizer, in place of the original's.

    State of a parameter's shape is cut, repeated or padded like the parameter. Parameters that went are dropped; new
    ones join the first parameter group. Parameters that the optimizer did not have stay outside.

    Args:
        optimizer: over the original's parameters.
        model: the changed copy.
        moved: the successor of each parameter of the original, by identity.
    """
    for group in optimizer.param_groups:
        kept = [(p, moved[id(p)]) for p in group["params"] if id(p) in moved]
        gone = [p for p in group["params"] if id(p) not in moved]
        for parameter in gone:
            optimizer.state.pop(parameter, None)
        group["params"] = [_follow(optimizer, parameter, successor) for parameter, successor in kept]
    inherited = {id(successor.new) for successor in moved.values()}
    optimizer.param_groups[0]["params"] += [p for p in model.parameters() if id(p) not in inherited]


def _follow(optimizer: Any, parameter: nn.Parameter, successor: Moved) -> Tensor:
    state = optimizer.state.pop(parameter, None)
    if state is not None:
        optimizer.state[successor.new] = {
            key: successor.take(value) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in state.items()
        }
    return successor.new
