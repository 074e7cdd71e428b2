"""Method ``phased``: makes a network smaller phase by phase, then adds training techniques."""

from convwright.methods.base import Decision
from convwright.methods.phased.phased import Answers, PhasedDesign

__all__ = ["Answers", "Decision", "PhasedDesign"]
