"""Runs on a SLURM cluster: job scripts, and whether a run fits on the nodes of a job."""
