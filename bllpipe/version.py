"""The version of bllpipe."""

__version__ = "0.1.0"
