"""Channel quality: rank and condition of trained kernels, and what they say about widths."""

from convwright.metrics.quality.channel_quality import (
    METRICS,
    ChannelQuality,
    Metric,
    Mode,
    channel_qualities,
    channel_quality,
    kernels,
    of_metric,
)

__all__ = [
    "METRICS",
    "ChannelQuality",
    "Metric",
    "Mode",
    "channel_qualities",
    "channel_quality",
    "kernels",
    "of_metric",
]
