"""Judge layers: receptive fields from the structure, conflicting bundles from activations, quality from kernels."""

from convwright.metrics.bundle_check import BundleCheck
from convwright.metrics.bundles import BundleCounter, Bundles, bundles
from convwright.metrics.quality import ChannelQuality, Mode, channel_qualities, channel_quality
from convwright.metrics.rank import Evbmf, evbmf
from convwright.metrics.receptive_field import LayerField, ReceptiveField, StageField, receptive_field, score
from convwright.metrics.weight_grid import WeightGrid, grid_width, weight_amplitude

__all__ = [
    "BundleCheck",
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
    "grid_width",
    "receptive_field",
    "score",
    "weight_amplitude",
]
