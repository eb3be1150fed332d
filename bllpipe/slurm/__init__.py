"""Runs on a cluster with SLURM: whether a run fits the nodes it is given, and job scripts."""
