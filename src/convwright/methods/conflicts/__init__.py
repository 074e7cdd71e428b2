"""``conflicts``: conflicting layers are found early in a training, and removed."""

from convwright.methods.conflicts.removal import Answers, Check, ConflictDecision, ConflictRemoval, Restart

__all__ = ["Answers", "Check", "ConflictDecision", "ConflictRemoval", "Restart"]
