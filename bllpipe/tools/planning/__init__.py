"""What a run would cost: measured, counted and predicted."""
