"""The messages on their way: between processes, between threads, and the one place that opens process groups."""
