"""The run directory: its files, the record of all trials, and `result.json`."""
