"""What can be read from finished runs: reports and comparisons."""
