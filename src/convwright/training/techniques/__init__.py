"""Training techniques: each a function for one's own loop, and a switch of the recipe with a card."""

from convwright.training.techniques import label_smoothing, mixup
from convwright.training.techniques.technique import (
    TECHNIQUES,
    Card,
    Effect,
    Entry,
    Setting,
    Technique,
    Training,
    made,
    technique,
    technique_named,
)

__all__ = [
    "TECHNIQUES",
    "Card",
    "Effect",
    "Entry",
    "Setting",
    "Technique",
    "Training",
    "label_smoothing",
    "made",
    "mixup",
    "technique",
    "technique_named",
]
