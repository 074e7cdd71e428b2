"""The laboratory: `reproduce` and `ablate` train rows of tables; nothing of a search depends on it."""
