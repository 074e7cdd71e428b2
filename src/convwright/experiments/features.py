"""What is known of a network without training it: the numbers that could predict how well it will do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from convwright.architecture import Architecture, create, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.cost.latency import compare_latency
from convwright.errors import ConvwrightError
from convwright.metrics.quality.channel_quality import (
    Metric,
    channel_qualities,
    group_qualities,
    kernels,
    members,
    network_quality,
    of_metric,
)
from convwright.metrics.receptive_field.analysis import FieldMeasure, StagePart, receptive_field
from convwright.training import ImageData, Recipe

Facts = dict[str, float | int | None]


def facts(arch: Architecture) -> Facts:
    """Return the scores of a network, none of which looks at its weights.

    Args:
        arch: The network.

    Returns:
        ``q_sum`` and ``q_log``: the reconstructed score Q, the sum of its stages' shares and that of their logarithms
        (None where a stage sees nothing); ``q_positions``: their mean logarithm over positions; ``q_effective``: the
        sum, with fields counted by their effective width; ``depth``: the number of convolutions.
    """
    field = receptive_field(arch)
    stages = field.stages
    seeing = all(stage.share > 0 for stage in stages)
    judged = {stage.name for stage in stages}
    sight = FieldMeasure(effective=True)
    parts = [StagePart.of(arch, stage) for stage in arch.stages if stage.name in judged]
    return {
        "q_sum": field.score(),
        "q_log": field.score("log") if seeing else None,
        "q_positions": field.score("positions") if seeing else None,
        "q_effective": math.fsum(sight.share(part, part.walk()) for part in parts),
        "depth": sum(layer.kind == "conv" for layer in arch.layers),
    }


_CORRECTED: tuple[Metric, ...] = ("qc", "rank", "knowledge_gain")


def quality_facts(arch: Architecture) -> dict[str, float]:
    """Return the mean over channel groups of each quality.

    Args:
        arch: The network, with its trained weights.

    Returns:
        ``qc``, ``rank`` and ``knowledge_gain``, corrected, and ``qc_parity``, as the published code computes it.
    """
    known, weights = members(arch), kernels(arch.model)
    corrected, published = channel_qualities(weights), channel_qualities(weights, parity=True)
    values: dict[str, float] = {
        name: network_quality(group_qualities(known, of_metric(corrected, name))) for name in _CORRECTED
    }
    return {**values, "qc_parity": network_quality(group_qualities(known, of_metric(published, "qc")))}


_SECONDS = 3.0


@dataclass(frozen=True)
class LayerConflicts:
    """Where the layers of a network without shortcuts conflict, before its training and after."""

    kind: ClassVar[str] = "layer conflicts"

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return per moment (``start``, ``end``) what `at` returns; the row needs the probe ``bundles``."""
        if "bundles" not in found:
            raise ConvwrightError("layer conflicts: give the row the probe 'bundles'")
        seen = found["bundles"]
        return {"start": at(seen, 0), "end": at(seen, -1), "samples": seen["samples"]}


def at(found: Mapping[str, Any], moment: int) -> dict[str, Any]:
    """Return what the probe ``bundles`` saw at one moment.

    Args:
        found: What the probe found.
        moment: Number of the measurement.

    Returns:
        ``first``, the number of the first layer that conflicts, from 1, None for none; ``layers`` that conflict and
        ``of`` how many; ``entropy`` of the last layer in nats and its ``excess``, None where it diverged.
    """
    places = list(found["own"].values())
    excess = [_finite(found["excess"][moment][place]) for place in places]
    marks = [value is None or value > 0 for value in excess]
    return {
        "first": marks.index(True) + 1 if any(marks) else None,
        "layers": sum(marks),
        "of": len(marks),
        "entropy": _finite(found["entropy"][moment][places[-1]]),
        "excess": excess[-1],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


@dataclass(frozen=True)
class CostStudy:
    """What a network costs, its latency measured in turns with that of another one.

    Attributes:
        model: The other network, as for `create`.
        options: Of its builder.
    """

    kind: ClassVar[str] = "costs"

    model: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return costs, ``layers`` with weights, ``latency`` in nanoseconds and its ``ratio`` to the other's."""
        arch = read(model, (1, *data.shape))
        other, _, _ = create(self.model, **self.options)
        image = torch.zeros(1, *data.shape)
        timed = compare_latency({"other": (other, image), "own": (arch.model, image)}, seconds=_SECONDS)
        return {
            **costs_of(profile(arch)),
            "layers": sum(layer.kind in ("conv", "linear") for layer in arch.layers),
            "latency": timed.latencies["own"].nanoseconds,
            "ratio": timed.ratios["own"].median,
        }
