"""Before the first message both ends of an edge say over the store what they mean by its messages.

A gloo message that is longer than its receive kills the receiver, and one that is shorter fills a part of it; so this
must be known before anything travels, and cannot be found out on the way.
"""

from __future__ import annotations

from typing import Literal

from bllpipe.errors import WireError
from bllpipe.ports import Store
from bllpipe.wire.layout import Layout

End = Literal["src", "dst"]
OTHER: dict[End, End] = {"src": "dst", "dst": "src"}


class Handshake:
    """The edges of one rank. First all ends are published, then all compared: so nobody waits in a circle."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends: list[tuple[Layout, End]] = []

    def publish(self, layout: Layout, end: End) -> None:
        """Says what this rank means by the messages of the layout's edge, of which it is the ``end``."""
        self._store.set(_key(layout, end), layout.largest().hex())
        self._ends.append((layout, end))

    def compare(self) -> None:
        """Waits for the other ends; raises WireError, naming both sides, when one means something else."""
        for layout, end in self._ends:
            other = self._other(layout, OTHER[end])
            sent, expected = (layout.largest(), other) if end == "src" else (other, layout.largest())
            layout.compare(sent, expected)

    def _other(self, layout: Layout, end: End) -> bytes:
        role = layout.roles[0 if end == "src" else 1]
        try:
            text = self._store.get(_key(layout, end))
        except RuntimeError as error:
            raise WireError(f"{layout}: {role} has not said what its messages are: {error}") from error
        try:
            return bytes.fromhex(text.decode())
        except ValueError:
            return text  # which the comparison describes


def _key(layout: Layout, end: End) -> str:
    return f"layout/{layout.edge}/{end}"
