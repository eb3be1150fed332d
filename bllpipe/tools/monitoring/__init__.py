"""What people and Prometheus see of a run while it trains."""
