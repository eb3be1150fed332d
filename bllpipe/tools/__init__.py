"""What is not needed to train: analysis, planning, monitoring, faults on purpose."""
