"""The algorithm and what surrounds it on every rank: schedule, worker, metrics, tracing, watchdog."""
