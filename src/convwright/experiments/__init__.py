"""`reproduce` and `ablate`: tables of papers, and what a technique is worth. No search needs them."""
