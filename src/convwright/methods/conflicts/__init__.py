"""Method ``conflicts``: finds conflicting layers early in a training, and removes them."""

from convwright.methods.conflicts.removal import Answers, Check, ConflictDecision, ConflictRemoval, Restart

__all__ = ["Answers", "Check", "ConflictDecision", "ConflictRemoval", "Restart"]
