"""Receptive fields: what each layer sees of the input, and what it sees anew."""

from convwright.metrics.receptive_field.analysis import (
    LayerField,
    ReceptiveField,
    Score,
    StageField,
    receptive_field,
    score,
)

__all__ = ["LayerField", "ReceptiveField", "Score", "StageField", "receptive_field", "score"]
