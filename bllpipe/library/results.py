"""A run that has ended, as a script reads it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.library.models import modules_of
from bllpipe.results.network_file import fill, network_weights
from bllpipe.run.checkpoint import find_checkpoint
from bllpipe.run.checkpoint.records import read_record
from bllpipe.run.notices import warn

Network = TypeVar("Network", bound="nn.Module | list[nn.Module]")


class Run:
    """What a run has left in its ``directory``; ``rank`` is the rank of this process in it."""

    def __init__(self, directory: str | Path, rank: int = 0) -> None:
        self.directory, self.rank = Path(directory), rank

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, rank={self.rank})"

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """summary.json; CheckpointError while there is none."""
        return read_record(self.directory / "summary.json")[0]

    @property
    def accuracy(self) -> float:
        """Of the whole network, the last block's scores, on the test split: 0 to 1; ConfigError without a test."""
        found = self.summary["test_accuracy"]
        if found is None:
            raise ConfigError(
                f"{self.directory} has no test accuracy, as the run was never tested; train without stop_at and "
                f"without evaluate.every_epochs=never"
            )
        return float(found)

    @property
    def block_accuracy(self) -> list[float]:
        """Of the head of every block, from front to back; empty if the run was never tested."""
        return list(self.summary["block_accuracy"])

    @property
    def ensemble_accuracy(self) -> float | None:
        """Of all heads together, the mean of their class probabilities; None unless ``evaluate.ensemble`` was true."""
        return self.summary.get("ensemble_accuracy")

    @property
    def state_sha256(self) -> str:
        """The digest of all weights of all ranks: equal for runs that ended in the same bits."""
        return str(self.summary["state_sha256"])

    def weights(self) -> dict[str, Tensor]:
        """The whole network's parameters and buffers in the newest checkpoint, by the names of its ``state_dict``."""
        found = find_checkpoint(self.directory / "checkpoints", warn)
        if found is None:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint; train with this run_dir first, and without "
                f"checkpoint.every_steps=never"
            )
        return network_weights(found)

    def load(self, model: Network) -> Network:
        """Copies these weights into ``model``, which must be a network of the same form; returns it.

        A rank of several has trained its own block alone: this is how it gets the others. Raises CheckpointError, and
        copies nothing, when names, shapes or dtypes differ.
        """
        whole = nn.Sequential(OrderedDict(modules_of(model)))  # type: ignore[arg-type]  # or it says what is needed
        fill(whole, self.weights(), str(self.directory))
        return model
