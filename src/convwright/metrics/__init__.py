"""Judge a network's layers: receptive fields from its structure, conflicting bundles from its activations."""

from convwright.metrics.bundle_check import BundleCheck
from convwright.metrics.bundles import BundleCounter, Bundles, bundles
from convwright.metrics.receptive_field import LayerField, ReceptiveField, StageField, receptive_field, score
from convwright.metrics.weight_grid import WeightGrid, grid_width, weight_amplitude

__all__ = [
    "BundleCheck",
    "BundleCounter",
    "Bundles",
    "LayerField",
    "ReceptiveField",
    "StageField",
    "WeightGrid",
    "bundles",
    "grid_width",
    "receptive_field",
    "score",
    "weight_amplitude",
]
