"""What a rank tells Prometheus of itself, and how it is found. Whoever asks reads plain numbers that are there already:
no training step does anything for it."""
