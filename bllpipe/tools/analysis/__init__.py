"""What is made of finished runs: evaluation, export, report, timeline."""
