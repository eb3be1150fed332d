"""What the directories and the files of checkpoints are called.

step-00000120                a checkpoint
step-00000120.partial-A      one that attempt A is writing, or was when it was killed
step-00000120.replaced-A     one that attempt A moved aside to put the same step in its place
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

MANIFEST = "manifest.json"
State = Literal["whole", "partial", "replaced"]
_PATTERN = re.compile(r"step-([0-9]{1,18})(?:\.(partial|replaced)-([A-Za-z0-9._-]+))?")


@dataclass(frozen=True)
class DirectoryName:
    """The name of a directory and what it says."""

    step: int
    state: State = "whole"
    attempt: str = ""

    def __str__(self) -> str:
        return f"step-{self.step:08}" + (f".{self.state}-{self.attempt}" if self.state != "whole" else "")

    @classmethod
    def parse(cls, name: str) -> DirectoryName | None:
        """None for a name that ``str`` would not give."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            return None
        found = cls(int(match[1]), cast(State, match[2] or "whole"), match[3] or "")
        return found if str(found) == name else None


def tensor_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def facts_file(rank: int) -> str:
    return f"rank-{rank}.json"


def file_names(world_size: int) -> set[str]:
    """The pairs of all ranks: the only files that a checkpoint has beside its manifest."""
    return {name(rank) for rank in range(world_size) for name in (tensor_file, facts_file)}
