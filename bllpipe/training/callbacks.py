"""Callbacks: what is displayed, exported and injected around a run, without engines that know of it.

``bllpipe.launch`` chooses them; they travel with the options of the engine to the job of every rank.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from bllpipe.training.worker import Worker


class Callback(Protocol):
    """The events of a run in one process. A callback inherits from this class and overrides the events that it needs.

    ``job`` is a bllpipe.engines.job.Job, whose module is above this one.
    """

    wraps_steps: bool = False  # whether it wraps methods of a training step, which a CUDA graph would not call

    def on_start(self, job: Any, worker: Worker) -> None:
        """A worker of this process is built; training has not begun."""
        return None

    def on_end(self, worker: Worker) -> None:
        """The worker has posted its report."""
        return None

    def on_failure(self, run_directory: Path, error: BaseException) -> None:
        """The run has failed, in this process first, and its status.json says so."""
        return None

    def on_exit(self) -> None:
        """This process ends at once, because of a failure or a second signal."""
        return None

    def display(self, job: Any) -> AbstractContextManager[object]:
        """The context in which the job trains, in the one process that prints."""
        return nullcontext()
