"""Links between the ranks of a job: gloo or NCCL, chosen per kind of edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from bllpipe.config.schema import BackendConfig
from bllpipe.ports import Round, Store
from bllpipe.topology import Edge
from bllpipe.wire.gloo import GlooReceiver, GlooSender
from bllpipe.wire.handshake import Handshake
from bllpipe.wire.layout import Layout
from bllpipe.wire.nccl import NcclReceiver, NcclSender


class ProcessWires:
    """This rank's ends of the edges in ``groups``; ``backends`` names what carries each kind. When all are made, and
    before the first message, ``agree`` has to be called."""

    def __init__(
        self,
        groups: Mapping[Edge, Any],
        backends: Mapping[str, str],
        config: BackendConfig,
        device: torch.device,
        store: Store,
    ) -> None:
        self._groups, self._backends, self._config, self._device = groups, backends, config, device
        self._handshake = Handshake(store)
        self._senders: list[GlooSender | NcclSender] = []
        self._nccl_senders: dict[Edge, NcclSender] = {}
        self._nccl_receivers: list[NcclReceiver] = []

    @property
    def has_nccl(self) -> bool:
        """Whether any edge of the job, this rank's or not, is carried by NCCL."""
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
        """Waits for the other ends of all edges; WireError when one of them means something else by its messages."""
        self._handshake.compare()

    def end(self, rounds: Callable[[Edge], Iterator[Round]]) -> None:
        """To be called behind the last round, before anything that waits for other ranks: ends those edges whose
        receives are posted ahead. ``rounds`` gives those of an edge, from the first one, whether the run was stopped in
        front of some of them or not."""
        for edge, sender in self._nccl_senders.items():
            sender.end(rounds(edge))
        for receiver in self._nccl_receivers:
            receiver.end()

    def finish(self) -> None:
        """Waits until everything that was sent has left, and no receive over NCCL is posted any more."""
        for sender in self._senders:
            sender.finish()
        for receiver in self._nccl_receivers:
            receiver.finish()


def chosen_backends(config: BackendConfig, distinct_gpus: bool) -> dict[str, str]:
    """``auto`` is NCCL for alpha between distinct GPUs, and gloo for the small messages of the feedback."""
    automatic = {"alpha": "nccl" if distinct_gpus else "gloo", "target": "gloo", "stats": "gloo"}
    asked = {"alpha": config.alpha, "target": config.target, "stats": config.stats}
    return {kind: automatic[kind] if choice == "auto" else choice for kind, choice in asked.items()}
