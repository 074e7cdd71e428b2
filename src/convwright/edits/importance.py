"""Importance: which channels stay when a group shrinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from convwright.architecture import Architecture, ChannelGroup
from convwright.errors import EditError, did_you_mean

Scores = npt.NDArray[np.float64]
IMPORTANCE: dict[str, Callable[[ChannelGroup, Architecture], Scores]] = {}


def importance(name: str) -> Callable[..., Any]:
    """Register an importance under a name that ``apply`` takes."""

    def register(function: Callable[[ChannelGroup, Architecture], Scores]) -> Any:
        IMPORTANCE[name] = function
        return function

    return register


@importance("l2")
def l2(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Root of the summed squares of all parameters that belong to a channel, group-wide.

    Each member is normalised by its own mean, so that a layer with large weights does not decide alone.
    """
    graph = architecture.channels
    total = np.zeros(group.units)
    for member in group.members:
        if member.tensor not in architecture.capture.parameters:
            continue
        weight = architecture.model.get_parameter(member.tensor).detach()
        others = [a for a in range(weight.ndim) if a != member.axis]
        norms = torch.linalg.vector_norm(weight, dim=others) if others else weight.abs()
        energy = norms.double().cpu().numpy() ** 2
        channels = graph.channels_of(graph.axis_labels((member.tensor, member.axis)))
        mine = graph.group_of[channels] == graph.index[group.name]
        summed = np.bincount(graph.rank[channels[mine]], energy[mine], minlength=group.units)
        total += summed / max(float(summed.mean()), 1e-30)
    return np.sqrt(total)


@importance("first")
def first(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Keep the first channels: for networks without trained weights."""
    return np.arange(group.units, 0, -1, dtype=np.float64)


def scores_for(given: Any, group: ChannelGroup, architecture: Architecture) -> Scores:
    """Return one score per channel of a group, higher meaning that it stays.

    Args:
        given: a registered name, a function of (group, architecture), or scores by group name.
        group: the group that shrinks.
        architecture: the network it belongs to.

    Raises:
        EditError: if the name is unknown or the number of scores is wrong.
    """
    if isinstance(given, Mapping):
        chosen = given.get(group.name)
        scores = l2(group, architecture) if chosen is None else np.asarray(chosen, dtype=np.float64)
    elif callable(given):
        scores = np.asarray(given(group, architecture), dtype=np.float64)
    elif given in IMPORTANCE:
        scores = IMPORTANCE[given](group, architecture)
    else:
        raise EditError(f"there is no importance {given!r}.{did_you_mean(str(given), IMPORTANCE)}")
    if scores.size == group.size and group.step > 1:
        scores = scores.reshape(group.step, group.units).sum(axis=0)
    if scores.shape != (group.units,):
        raise EditError(f"{group.name} has {group.units} channels, but got scores of shape {scores.shape}.")
    return scores
