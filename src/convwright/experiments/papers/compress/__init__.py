"""Trained networks at half and a quarter of the cost: our way beside the ways of others, equally tuned."""
