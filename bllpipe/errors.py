"""The errors of a run and their exit codes.

Every message says what was expected, what was found and what to type.
"""


class BllpipeError(Exception):
    """A failure that bllpipe reports in one message instead of a traceback."""

    exit_code = 1


class ConfigError(BllpipeError):
    """The run cannot start: a key, a value, a cut or a number of ranks is impossible."""

    exit_code = 2


class DataError(BllpipeError):
    """The data are missing, unreadable or invalid."""

    exit_code = 2


class WireError(BllpipeError):
    """A message did not arrive, or is not the next one of its edge."""

    exit_code = 3


class CheckpointError(BllpipeError):
    """A checkpoint is damaged, missing, or belongs to another model."""

    exit_code = 4


class DriftError(BllpipeError):
    """The replicas of a block have different states."""


class NonFiniteError(BllpipeError):
    """NaN or Inf appeared during training."""

    exit_code = 5


class OutOfMemoryError(BllpipeError):
    """A rank could not allocate memory."""

    exit_code = 8


class OutputError(BllpipeError):
    """A file of the run could not be written: the disk or a quota is full, or the directory is not writable."""

    exit_code = 6

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; free space or fix the directory, and resume with --resume auto")
        self.found = found


class NoProgressError(BllpipeError):
    """All restarts fail at the same step."""

    exit_code = 7


# Exit codes of failures that a restart would repeat, since training is deterministic.
NOT_RETRYABLE = frozenset(
    error.exit_code
    for error in (
        ConfigError,
        DataError,
        CheckpointError,
        NonFiniteError,
        OutOfMemoryError,
        OutputError,
        NoProgressError,
    )
)
