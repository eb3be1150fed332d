"""What the garbage collector need not look at in tests: all that was imported before them."""

from __future__ import annotations

import gc

_count = gc.get_freeze_count


def freeze() -> None:
    """All objects that there are now stay to the end of the process, or to ``thaw``. Every run asks twice how many are
    frozen, for which the collector goes through each of them, a third of the processor time of a rank of five steps:
    here it knows their number."""
    gc.collect()
    gc.freeze()
    number = _count()
    setattr(gc, "get_freeze_count", lambda: number)  # noqa: B010  # not for type checkers


def thaw() -> None:
    """For tests of what is frozen: nothing is, and what is frozen from now on is counted."""
    gc.unfreeze()
    setattr(gc, "get_freeze_count", _count)  # noqa: B010  # not for type checkers
