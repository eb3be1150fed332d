"""Links between the ranks of a job, over gloo or NCCL by kind of edge, and the handshake of both ends of an edge.

A gloo message that is larger than its receive kills the receiver, and a smaller one fills a part of it; so both ends
compare their layouts of messages over the store before the first one is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch

from bllpipe.config.running import BackendConfig
from bllpipe.distributed.gloo import GlooReceiver, GlooSender
from bllpipe.distributed.message_format import Layout
from bllpipe.distributed.nccl import NcclReceiver, NcclSender
from bllpipe.errors import WireError
from bllpipe.messages import Round, Store
from bllpipe.topology import Edge

End = Literal["src", "dst"]
OTHER: dict[End, End] = {"src": "dst", "dst": "src"}


class ProcessLinks:
    """This rank's ends of the edges in ``groups``; ``backends`` names the backend of each kind. Call ``agree`` after
    all ends are made, and before the first message."""

    def __init__(
        self,
        groups: Mapping[Edge, Any],
        backends: Mapping[str, str],
        config: BackendConfig,
        device: torch.device,
        store: Store,
    ) -> None:
        self._groups, self._backends, self._config, self._device = groups, backends, config, device
        self._handshake = EdgeHandshake(store)
        self._senders: list[GlooSender | NcclSender] = []
        self._nccl_senders: dict[Edge, NcclSender] = {}
        self._nccl_receivers: list[NcclReceiver] = []

    @property
    def has_nccl(self) -> bool:
        """Whether any edge of the job uses NCCL, on this rank or not."""
        return "nccl" in self._backends.values()

    def sender(self, layout: Layout) -> GlooSender | NcclSender:
        """The outgoing end of the layout's edge."""
        group, config = self._groups[layout.edge], self._config
        self._handshake.publish(layout, "src")
        if self._backends[layout.edge.kind] == "nccl":
            self._nccl_senders[layout.edge] = NcclSender(layout, group, config.in_flight, self._device)
            self._senders.append(self._nccl_senders[layout.edge])
        else:
            self._senders.append(GlooSender(layout, group, config.in_flight, config.timeout_seconds, self._device))
        return self._senders[-1]

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> GlooReceiver | NcclReceiver:
        """The incoming end of the layout's edge, for the messages of ``rounds``."""
        group = self._groups[layout.edge]
        self._handshake.publish(layout, "dst")
        if self._backends[layout.edge.kind] == "nccl":
            self._nccl_receivers.append(NcclReceiver(layout, group, rounds, self._device))
            return self._nccl_receivers[-1]
        return GlooReceiver(layout, group, rounds, self._device, self._config.timeout_seconds)

    def agree(self) -> None:
        """Waits for the other ends of all edges; WireError if one of them has another layout."""
        self._handshake.compare()

    def end(self, rounds: Callable[[Edge], Iterator[Round]]) -> None:
        """Ends the edges whose receives are posted ahead; called after the last round, before anything that waits for
        other ranks. ``rounds`` returns all rounds of an edge, from the first one, also those after a stop."""
        for edge, sender in self._nccl_senders.items():
            sender.end(rounds(edge))
        for receiver in self._nccl_receivers:
            receiver.end()

    def finish(self) -> None:
        """Waits until all messages are sent, and no receive over NCCL is posted any more."""
        for sender in self._senders:
            sender.finish()
        for receiver in self._nccl_receivers:
            receiver.finish()


def chosen_backends(config: BackendConfig, distinct_gpus: bool) -> dict[str, str]:
    """``auto`` is NCCL for alpha between distinct GPUs, and gloo for the small messages of the feedback."""
    automatic = {"alpha": "nccl" if distinct_gpus else "gloo", "target": "gloo", "stats": "gloo"}
    asked = {"alpha": config.alpha, "target": config.target, "stats": config.stats}
    return {kind: automatic[kind] if choice == "auto" else choice for kind, choice in asked.items()}


class EdgeHandshake:
    """The layouts of all edges of one rank: first all ends are published, then all are compared, so that ranks cannot
    deadlock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends: list[tuple[Layout, End]] = []

    def publish(self, layout: Layout, end: End) -> None:
        """Publishes the layout of an edge of which this rank is the ``end``."""
        self._store.set(_key(layout, end), layout.largest().hex())
        self._ends.append((layout, end))

    def compare(self) -> None:
        """Waits for the other ends; raises WireError, naming both sides, if one has another layout."""
        for layout, end in self._ends:
            other = self._layout_at(layout, OTHER[end])
            sent, expected = (layout.largest(), other) if end == "src" else (other, layout.largest())
            layout.compare(sent, expected)

    def _layout_at(self, layout: Layout, end: End) -> bytes:
        role = layout.roles[0 if end == "src" else 1]
        try:
            text = self._store.get(_key(layout, end))
        except RuntimeError as error:
            raise WireError(f"{layout}: {role} has not published the layout of its messages: {error}") from error
        try:
            return bytes.fromhex(text.decode())
        except ValueError:
            return text  # the comparison describes it


def _key(layout: Layout, end: End) -> str:
    return f"layout/{layout.edge}/{end}"
