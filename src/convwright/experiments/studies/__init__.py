"""Studies of trained networks: which blocks can be removed, and in which order."""
