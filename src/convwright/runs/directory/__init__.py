"""The run directory: its files, its trials and what made them."""
