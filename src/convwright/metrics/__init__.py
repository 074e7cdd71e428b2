"""Metrics that judge layers: receptive fields, conflicting bundles, channel quality."""

from convwright.metrics.bundles.counter import BundleCounter, Bundles, bundles
from convwright.metrics.bundles.weight_grid import WeightGrid, weight_amplitude
from convwright.metrics.quality.channel_quality import ChannelQuality, Mode, channel_qualities, channel_quality
from convwright.metrics.quality.evbmf import Evbmf, evbmf
from convwright.metrics.receptive_field.analysis import LayerField, ReceptiveField, StageField, receptive_field, score

__all__ = [
    "BundleCounter",
    "Bundles",
    "ChannelQuality",
    "Evbmf",
    "LayerField",
    "Mode",
    "ReceptiveField",
    "StageField",
    "WeightGrid",
    "bundles",
    "channel_qualities",
    "channel_quality",
    "evbmf",
    "receptive_field",
    "score",
    "weight_amplitude",
]
