"""Train deep networks as pipelines of blocks that never wait for a backward pass."""

__version__ = "0.1.0"
