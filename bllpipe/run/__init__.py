"""The loops of a run, and what surrounds them: data, checkpoints, records, progress."""
