"""Planning a run: what its units cost, where to cut them, and what every engine would make of the cut."""
