"""``phased``: a network made smaller phase by phase, then trained with techniques."""

from convwright.methods.base import Decision
from convwright.methods.phased.phased import Answers, PhasedDesign

__all__ = ["Answers", "Decision", "PhasedDesign"]
