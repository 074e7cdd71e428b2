"""Two small studies of trained networks: where their layers conflict, and what they cost beside another network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from convwright.architecture import create, read
from convwright.cost import profile
from convwright.cost.budget import costs_of
from convwright.cost.latency import compare_latency
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from torch import nn

    from convwright.training import ImageData, Recipe

_SECONDS = 3.0


@dataclass(frozen=True)
class LayerConflicts:
    """Where the layers of a network without shortcuts conflict, before its training and after."""

    kind: ClassVar[str] = "layer conflicts"

    def carry_out(self, model: nn.Module, data: ImageData, recipe: Recipe, found: Mapping[str, Any]) -> Any:
        """Return per moment (``start``, ``end``) what `at` returns.

        Args:
            model: Not looked at.
            data: Likewise.
            recipe: Likewise.
            found: By the probe ``bundles``.

        Raises:
            ConvwrightError: The row has no such probe.
        """
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
        """Return costs, ``layers`` with weights, ``latency`` in nanoseconds and its ``ratio`` to the other's.

        Args:
            model: The network; it stays as it is.
            data: Gives the shape of its images.
            recipe: Not used.
            found: Not used.
        """
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
