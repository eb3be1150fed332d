"""What can go wrong, as seen by the person who started the run.

Every message says what was found, what is needed and what to type.
"""


class BllpipeError(Exception):
    """Any failure that bllpipe explains in one message instead of a traceback."""

    exit_code = 1


class ConfigError(BllpipeError):
    """The run cannot start as it was described: a key, a value, a cut or a number of ranks is impossible."""

    exit_code = 2


class DataError(BllpipeError):
    """The data are missing, unreadable, or not what they have to be."""

    exit_code = 2


class WireError(BllpipeError):
    """A message did not arrive, or is not the one that its edge must carry next."""

    exit_code = 3


class CheckpointError(BllpipeError):
    """A checkpoint is damaged, missing, or belongs to another model."""

    exit_code = 4


class NonFiniteError(BllpipeError):
    """NaN or Inf appeared during training."""

    exit_code = 5


class OutputError(BllpipeError):
    """A file of the run could not be written: the disk or a quota is full, or the directory takes no files."""

    exit_code = 6

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; make room or mend the directory, and go on with --resume auto")
        self.found = found


class NoProgressError(BllpipeError):
    """Restart after restart fails at the same place."""

    exit_code = 7


# Exit codes of what would come back in the same way, since training is deterministic: a restart is of no use.
NOT_RETRYABLE = frozenset(
    error.exit_code for error in (ConfigError, DataError, CheckpointError, NonFiniteError, OutputError, NoProgressError)
)
