"""Measurements: each prints a table and writes JSON with its environment, n, median and spread."""
