"""Examine a network without a search: `analyze`, `doctor`, advice, and plans applied again."""
