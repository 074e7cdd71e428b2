"""Probes of a trained network: what each channel and each block is worth, by its weights or calibration images."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from convwright.architecture import Architecture, read
from convwright.edits.importance import IMPORTANCE, OBSERVERS, block_losses, l2, loss_curve, mean_loss, saliency
from convwright.edits.importance.saliency import Batches, Loss
from convwright.training.probes.base import Moment, Probe, probe
from convwright.training.settings import autocast, untouched_random

_BATCH = 32
_MEASURED = 256  # images on which losses are measured; gradients are taken of all calibration images
_DIGITS = 6


class AtTheEnd(Probe):
    """Looks at the trained network once, at the end, on calibration images."""

    def due(self, moment: Moment) -> bool:
        """Nothing is kept on the way."""
        return False

    def found(self) -> dict[str, Any]:
        """Return what is found, as plain JSON values."""
        watched = self.watched
        with untouched_random(watched.device), autocast(watched.device, watched.recipe.precision):
            model = copy.deepcopy(watched.model).float().eval().requires_grad_(True)
            arch = read(model, torch.zeros(1, *watched.data.shape, device=watched.device))
            images, labels = watched.sample(watched.calibration)
            parts = range(0, len(images), _BATCH)
            batches = [(images[i : i + _BATCH], labels[i : i + _BATCH]) for i in parts]
            return self.looked(arch, batches, cross_entropy)

    @classmethod
    def looked(cls, arch: Architecture, batches: Batches, loss: Loss | None) -> dict[str, Any]:
        """Return what batches (inputs, targets) and a loss of outputs and targets say about a network."""
        raise NotImplementedError

    def state_dict(self) -> Any:
        """A resumed training needs nothing: the end is looked at, and nothing else."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing was kept."""


@probe("channel-norms")
class ChannelNorms(AtTheEnd):
    """Looks at the trained network once, at the end: the group-wide L2 norm of each channel, as narrowing ranks them.

    What is found is, by name of each channel group that can change, the norms over their mean, largest first: what a
    pruner that ranks all channels of a network together compares (group norms of Fang et al. 2023, DepGraph).
    """

    def found(self) -> dict[str, Any]:
        """Return ``norms``: group -> norms over their mean, largest first."""
        watched = self.watched
        with untouched_random(watched.device):
            arch = read(copy.deepcopy(watched.model).float().cpu(), torch.zeros(1, *watched.data.shape))
        return self.looked(arch, (), None)

    @classmethod
    def looked(cls, arch: Architecture, batches: Batches, loss: Loss | None) -> dict[str, Any]:
        """Return the same of a network that was read."""
        norms = {group.name: np.sort(l2(group, arch))[::-1] for group in arch.free_groups}
        return {
            "norms": {name: [round(float(n), 4) for n in each / (each.mean() or 1)] for name, each in norms.items()}
        }


class SaliencyProbe(AtTheEnd):
    """What each channel is worth: ``groups``, one score per channel by name of each group that can change."""

    kind: ClassVar[str] = "taylor"

    @classmethod
    def looked(cls, arch: Architecture, batches: Batches, loss: Loss | None) -> dict[str, Any]:
        """Return the scores."""
        scores = saliency(arch, batches, loss, cls.kind)
        return {"groups": {name: [_short(value) for value in values.tolist()] for name, values in scores.items()}}


class BlockLosses(AtTheEnd):
    """What each block is worth: how much the loss rises without it, and how lost saliency turns into loss.

    Found: ``blocks``, the rise by name of each block that can go; ``curve``, rising pairs (saliency lost, rise of the
    loss), which bring blocks into the unit of the channels; ``loss``, that of the network as it is.
    """

    kind: ClassVar[str] = "taylor"

    @classmethod
    def looked(cls, arch: Architecture, batches: Batches, loss: Loss | None) -> dict[str, Any]:
        """Return blocks, curve and loss."""
        assert loss is not None
        measured = [*islice(batches, max(1, _MEASURED // _BATCH))]
        blocks = block_losses(arch, measured, loss)
        scores = saliency(arch, measured, loss, cls.kind) if blocks else {}
        curve = loss_curve(arch, measured, loss, scores) if blocks else []
        return {
            "blocks": {name: _short(value) for name, value in blocks.items()},
            "curve": [[_short(lost), _short(rise)] for lost, rise in curve],
            "loss": _short(mean_loss(arch.model, measured, loss)),
        }


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _register() -> None:
    """File two probes per kind of scores; those of the Taylor terms go by the name alone."""
    for kind in (*OBSERVERS, *IMPORTANCE):
        for base, name in ((SaliencyProbe, "saliency"), (BlockLosses, "block-losses")):
            own = base if kind == base.kind else type(f"{base.__name__}_{kind}", (base,), {"kind": kind})
            probe(name if own is base else f"{name}-{kind}", key=name)(own)


_register()
