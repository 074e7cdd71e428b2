"""``phased``: a network made smaller phase by phase, then trained with techniques."""

from convwright.methods.phased.phased import Answers, Decision, PhasedDesign

__all__ = ["Answers", "Decision", "PhasedDesign"]
