"""The registry of importances: which channels stay when a group shrinks.

An importance of the weights alone is a function of a group and its network, which `apply` takes by name. One that
looks at data is an `Observer`, which `saliency` lets see each calibration batch. A new one is one new file here:
a function under ``@importance("name")``, or a class under ``@observer("name")``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from convwright.architecture import Architecture, ChannelGroup
from convwright.edits.importance.gates import Gates, Scores
from convwright.errors import EditError, did_you_mean

IMPORTANCE: dict[str, Callable[[ChannelGroup, Architecture], Scores]] = {}
OBSERVERS: dict[str, type[Observer]] = {}
_Kind = TypeVar("_Kind", bound="type[Observer]")


class Observer:
    """Scores channels by what calibration batches show. Derive, and file the class under a name with `observer`.

    Attributes:
        gradients: Whether it needs the gradient of the loss.
        single: Whether batches must be split into single samples for it where a consumer has no gate of its own.
        parameters: Whether it needs the gradients of the weights, too.
    """

    gradients: ClassVar[bool] = True
    single: ClassVar[bool] = False
    parameters: ClassVar[bool] = False

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    def see(self) -> None:
        """Add up what the gates of this batch say."""
        raise NotImplementedError

    def scores(self) -> dict[str, Scores]:
        """Return one score per channel, by group name."""
        raise NotImplementedError


def importance(name: str) -> Callable[..., Any]:
    """Register an importance of the weights under a name that ``apply`` takes."""

    def register(function: Callable[[ChannelGroup, Architecture], Scores]) -> Any:
        IMPORTANCE[name] = function
        return function

    return register


def observer(name: str) -> Callable[[_Kind], _Kind]:
    """Register an importance that looks at calibration batches, under a name that `saliency` takes."""

    def register(kind: _Kind) -> _Kind:
        OBSERVERS[name] = kind
        return kind

    return register


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
        scores = IMPORTANCE["l2"](group, architecture) if chosen is None else np.asarray(chosen, dtype=np.float64)
    elif callable(given):
        scores = np.asarray(given(group, architecture), dtype=np.float64)
    elif given in IMPORTANCE:
        scores = IMPORTANCE[given](group, architecture)
    elif given in OBSERVERS:
        raise EditError(f"importance {given!r} looks at data: give apply the scores that cw.saliency returns.")
    else:
        raise EditError(f"there is no importance {given!r}.{did_you_mean(str(given), IMPORTANCE)}")
    if scores.size == group.size and group.step > 1:
        scores = scores.reshape(group.step, group.units).sum(axis=0)
    if scores.shape != (group.units,):
        raise EditError(f"{group.name} has {group.units} channels, but got scores of shape {scores.shape}.")
    return scores
