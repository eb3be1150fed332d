"""What ``import bllpipe`` offers to scripts."""
