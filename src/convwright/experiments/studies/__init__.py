"""Studies of trained networks: which blocks can go."""
