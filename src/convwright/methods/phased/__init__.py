"""Method ``phased``: makes a network smaller phase by phase, then adds training techniques."""

from convwright.methods.phased.phased import Answers, Decision, PhasedDesign

__all__ = ["Answers", "Decision", "PhasedDesign"]
