"""The probe of channel norms: how much weight each channel of a trained network carries, group by group."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from convwright.architecture import read
from convwright.edits.importance import l2
from convwright.training.probes.base import Moment, Probe, probe
from convwright.training.settings import untouched_random

_DIGITS = 4


@probe("channel-norms")
class ChannelNorms(Probe):
    """Looks at the trained network once, at the end: the group-wide L2 norm of each channel, as narrowing ranks them.

    What is found is, by name of each channel group that can change, the norms over their mean, largest first: what a
    pruner that ranks all channels of a network together compares (group norms of Fang et al. 2023, DepGraph).
    """

    def due(self, moment: Moment) -> bool:
        """Nothing is kept on the way."""
        return False

    def found(self) -> dict[str, Any]:
        """Return ``norms``: group -> norms over their mean, largest first."""
        images = self.watched.data.shape
        device = self.watched.device
        with untouched_random(device):
            arch = read(copy.deepcopy(self.watched.model).float().cpu(), torch.zeros(1, *images))
        norms = {group.name: np.sort(l2(group, arch))[::-1] for group in arch.free_groups}
        return {"norms": {name: [round(float(n), _DIGITS) for n in _over_mean(each)] for name, each in norms.items()}}

    def state_dict(self) -> Any:
        """A resumed training needs nothing: the end is looked at, and nothing else."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing was kept."""


def _over_mean(norms: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    mean = float(norms.mean())
    return norms / mean if mean > 0 else norms
