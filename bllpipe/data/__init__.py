"""Data sets, and the batches that each rank draws from them."""
