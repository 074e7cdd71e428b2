"""Terminal tables of networks, receptive fields, diagnoses and results."""
