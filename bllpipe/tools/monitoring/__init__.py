"""A run while it trains: progress display, Prometheus metrics, health check."""
