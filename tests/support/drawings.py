"""What a drawing shows: its texts and where they stand, and shapes with their corners and notes."""

from __future__ import annotations

import re
from functools import cached_property
from xml.etree import ElementTree

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
Corners = list[tuple[float, float]]


class Drawing:
    """SVG text, parsed, which fails unless all tags are closed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = ElementTree.fromstring(text)

    @property
    def title(self) -> str:
        return self.root.findtext(f"{SVG}title") or ""

    @property
    def texts(self) -> list[str]:
        return [node.text or "" for node in self.root.iter(f"{SVG}text")]

    @cached_property
    def places(self) -> dict[str, tuple[float, float]]:
        """Where every text stands."""
        nodes = list(self.root.iter(f"{SVG}text"))
        return {node.text or "": (float(node.get("x", "nan")), float(node.get("y", "nan"))) for node in nodes}

    def shapes(self, look: str) -> list[ElementTree.Element]:
        return [node for node in self.root.iter() if node.get("class") == look]

    def count(self, look: str) -> int:
        return len(self.shapes(look))

    def notes(self, look: str) -> list[str]:
        """What a pointer on each shape is told."""
        return [node.findtext(f"{SVG}title") or "" for node in self.shapes(look)]

    def corners(self, look: str) -> list[Corners]:
        """Of every path, or of the path that is used, moved to where it is used."""
        defined = {node.get("id"): node for node in self.root.iter(f"{SVG}path")}
        found = []
        for node in self.shapes(look):
            x, y = float(node.get("x", "0")), float(node.get("y", "0"))
            path = defined.get(node.get(f"{XLINK}href", "#")[1:], node)
            found.append([(x + dx, y + dy) for dx, dy in corners_of(path.get("d", ""))])
        return found

    def uses(self, look: str) -> Corners:
        """Where markers stand."""
        return [(float(node.get("x", "nan")), float(node.get("y", "nan"))) for node in self.shapes(look)]


def corners_of(path: str) -> Corners:
    pairs = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)
    return [(float(x), float(y)) for x, y in pairs]
