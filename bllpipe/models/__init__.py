"""Networks as lists of units, and where they are cut into blocks."""
