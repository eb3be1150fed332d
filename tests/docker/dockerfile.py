"""Reading a Dockerfile, and doing what its COPY says, as far as ours goes."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"


@dataclass(frozen=True)
class Instruction:
    """A keyword, such as RUN, and what stands behind it."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The command: a JSON list, or words as a shell splits them."""
        if self.keyword == "HEALTHCHECK":
            return Instruction("CMD", self.text.partition("CMD ")[2]).words
        found: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return found

    @property
    def copied(self) -> tuple[list[str], str]:
        """Sources and destination of a COPY."""
        *sources, destination = [word for word in self.words if not word.startswith("--")]
        return sources, destination


def instructions(file: Path = DOCKER / "Dockerfile") -> list[Instruction]:
    """All of a Dockerfile, in order."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [Instruction(*line.strip().split(maxsplit=1)) for line in joined]


def only(keyword: str) -> list[Instruction]:
    """Those with this keyword."""
    return [instruction for instruction in instructions() if instruction.keyword == keyword]


def copy(instruction: Instruction, target: Path) -> None:
    """What COPY does: files into a folder that ends with a slash, the content of a folder into a folder."""
    sources, destination = instruction.copied
    for source in (REPOSITORY / name for name in sources):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = target / source.name if destination.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, into)
