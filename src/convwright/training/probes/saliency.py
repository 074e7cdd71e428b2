"""Probes of a trained network: what each channel and each block is worth, by its weights or calibration images."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np

from convwright.architecture import Architecture, read
from convwright.edits.importance import (
    IMPORTANCE,
    OBSERVERS,
    BatchLoss,
    block_losses,
    l2,
    loss_curve,
    mean_loss,
    saliency,
)
from convwright.training.preflight import read_with
from convwright.training.probes.base import Moment, Probe, probe
from convwright.training.settings import autocast, untouched_random
from convwright.training.tasks.base import Batch

_BATCH = 32
_MEASURED = 256  # images on which losses are measured; gradients are taken of all calibration images
_DIGITS = 6


class _AtTheEnd(Probe):
    """Looks at the trained network once, at the end, on calibration images."""

    def due(self, moment: Moment) -> bool:
        return False  # nothing is kept on the way

    def found(self) -> dict[str, Any]:
        watched = self.watched
        # Gradients of float16 come to nothing unless they are scaled: these are taken in float32.
        precision = "fp32" if watched.recipe.precision == "fp16" else watched.recipe.precision
        with untouched_random(watched.device), autocast(watched.device, precision):
            model = copy.deepcopy(watched.model).float().eval().requires_grad_(True)
            arch = read(model, read_with(watched.data, model))
            return self.looked(arch, watched.batches(watched.calibration, _BATCH))

    @property
    def loss(self) -> BatchLoss:
        return BatchLoss(self.watched.data.loss)

    def looked(self, arch: Architecture, batches: list[Batch]) -> dict[str, Any]:
        raise NotImplementedError

    def state_dict(self) -> Any:
        return {}  # a resumed training needs nothing: the end is looked at, and nothing else

    def load_state_dict(self, state: Any) -> None:
        pass


@probe("channel-norms")
class ChannelNorms(_AtTheEnd):
    """Looks at the trained network once, at the end: the group-wide L2 norm of each channel, as narrowing ranks them.

    What is found is, by name of each channel group that can change, the norms over their mean, largest first: what a
    pruner that ranks all channels of a network together compares (group norms of Fang et al. 2023, DepGraph).
    """

    def found(self) -> dict[str, Any]:
        """Return ``norms``: group -> norms over their mean, largest first."""
        watched = self.watched
        with untouched_random(watched.device):
            model = copy.deepcopy(watched.model).float()
            arch = read(model, read_with(watched.data, model))
        norms = {group.name: np.sort(l2(group, arch))[::-1] for group in arch.free_groups}
        return {
            "norms": {name: [round(float(n), 4) for n in each / (each.mean() or 1)] for name, each in norms.items()}
        }


class SaliencyProbe(_AtTheEnd):
    """What each channel is worth: ``groups``, one score per channel by name of each group that can change."""

    kind: ClassVar[str] = "taylor"

    def looked(self, arch: Architecture, batches: list[Batch]) -> dict[str, Any]:
        """Return the scores."""
        scores = saliency(arch, batches, self.loss, self.kind)
        return {"groups": {name: [_short(value) for value in values.tolist()] for name, values in scores.items()}}


class BlockLosses(_AtTheEnd):
    """What each block is worth: how much the loss rises without it, and how lost saliency turns into loss.

    Found: ``blocks``, the rise by name of each block that can go; ``curve``, rising pairs (saliency lost, rise of the
    loss), which bring blocks into the unit of the channels; ``loss``, that of the network as it is.
    """

    kind: ClassVar[str] = "taylor"

    def looked(self, arch: Architecture, batches: list[Batch]) -> dict[str, Any]:
        """Return blocks, curve and loss."""
        measured = batches[: max(1, _MEASURED // _BATCH)]
        blocks = block_losses(arch, measured, self.loss)
        scores = saliency(arch, measured, self.loss, self.kind) if blocks else {}
        curve = loss_curve(arch, measured, self.loss, scores) if blocks else []
        return {
            "blocks": {name: _short(value) for name, value in blocks.items()},
            "curve": [[_short(lost), _short(rise)] for lost, rise in curve],
            "loss": _short(mean_loss(arch.model, measured, self.loss)),
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
