"""Checkpoints: safetensors and JSON, one pair a rank, and a manifest that lets nothing damaged pass."""

from bllpipe.run.checkpoint.reading import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.run.checkpoint.writing import CheckpointWriter, remove_unfinished

__all__ = ["Checkpoint", "CheckpointWriter", "find_checkpoint", "open_checkpoint", "remove_unfinished"]
