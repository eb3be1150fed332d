"""Checkpoints: safetensors and JSON, one pair a rank, and a manifest that detects any damage."""

from bllpipe.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.checkpoint.writer import CheckpointWriter, remove_unfinished

__all__ = ["Checkpoint", "CheckpointWriter", "find_checkpoint", "open_checkpoint", "remove_unfinished"]
