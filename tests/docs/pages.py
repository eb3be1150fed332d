"""Reading a page of the documentation: its blocks of code, its links, its headings, and what stands in back-ticks.

What a block is, says its first line: ``sh`` holds commands, ``python`` code, ``yaml`` a part of a config, ``text`` what
was printed. A block without such a word, or an indented one, holds commands if its first word is one, and else output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).parents[2]
Kind = Literal["commands", "python", "yaml", "output"]
KINDS: dict[str, Kind] = {"sh": "commands", "bash": "commands", "python": "python", "yaml": "yaml"}
COMMANDS = ("bllpipe", "python", "python3", "torchrun", "make", "sbatch", "docker", "curl", "pip", "export", "git")
BEGINS = re.compile(rf"([A-Z_]+=|({'|'.join(COMMANDS)})(\s|$)|(launch|benchmarks|tests)/\S+\.sh\b)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OURS_AT_TOP = re.compile(r"(bllpipe|benchmarks|configs|docker|docs|launch|tests)/")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code; ``line`` is where its text begins in the page."""

    kind: Kind
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(REPOSITORY)) if self.path.is_relative_to(REPOSITORY) else self.path.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        found = [self._block(each.start(2), each[2], each[1]) for each in FENCED.finditer(self.text)]
        found += [self._block(each.start(), _dedented(each[1]), "") for each in INDENTED.finditer(self._unfenced)]
        return sorted(found, key=lambda block: block.line)

    def _block(self, at: int, text: str, word: str) -> Block:
        kind = KINDS.get(word, "output")
        if not word and BEGINS.match(text):
            kind = "commands"
        return Block(kind, text, self.text.count("\n", 0, at) + 1)

    @cached_property
    def _unfenced(self) -> str:
        """The page with dots for its fenced blocks, so that places stay the same."""
        return FENCED.sub(lambda each: re.sub(r"[^\n]", ".", each[0]), self.text)

    @cached_property
    def prose(self) -> str:
        """The page without its blocks."""
        return INDENTED.sub("", FENCED.sub("", self.text))

    @property
    def inline(self) -> list[str]:
        """What stands in back-ticks; a bar is escaped in a table."""
        return [code.replace("\\|", "|") for code in INLINE.findall(self.prose)]

    @property
    def links(self) -> list[str]:
        """Where links and images of the page lead; addresses in the network are left out."""
        return [link for link in LINK.findall(INLINE.sub("", self.prose)) if "://" not in link]

    @property
    def anchors(self) -> set[str]:
        """What a link may name behind ``#``, as GitHub makes it of headings."""
        headings = re.findall(r"^#+ (.*)$", FENCED.sub("", self.text), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _dedented(text: str) -> str:
    return re.sub(r"^ {4}", "", text, flags=re.MULTILINE)


def all_pages() -> list[Page]:
    """Every page for readers, those that others add too."""
    folders = (REPOSITORY, REPOSITORY / "docs", REPOSITORY / "benchmarks" / "results")
    return [Page(path) for folder in folders for path in sorted(folder.glob("*.md"))]


def broken_links(page: Page) -> Iterator[str]:
    """Links to files or headings that do not exist."""
    for link in page.links:
        place, _, anchor = link.partition("#")
        target = Page((page.path.parent / place).resolve() if place else page.path)
        if not target.path.exists() or (anchor and anchor not in target.anchors):
            yield link
