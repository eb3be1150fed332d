"""What ``import bllpipe`` offers to a script: train, cut and plan networks of its own. It calls what the command line
calls, with objects where a config has names."""
