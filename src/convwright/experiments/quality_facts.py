"""What the trained kernels of a network say of it: CONetV2's qualities as one number per network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convwright.metrics.quality.channel_quality import (
    channel_qualities,
    group_qualities,
    kernels,
    members,
    network_quality,
    of_metric,
)

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.metrics.quality.channel_quality import Metric

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
