"""Judge a network without training it: receptive fields."""

from convwright.metrics.receptive_field import LayerField, ReceptiveField, StageField, receptive_field, score

__all__ = ["LayerField", "ReceptiveField", "StageField", "receptive_field", "score"]
