"""A store that only this machine can reach: torch's own listens on every interface."""

from __future__ import annotations

import ipaddress
import socket
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = "127.0.0.1"


def loopback_store(timeout: float, address: str = LOOPBACK, port: int = 0) -> dist.TCPStore:
    """The server of a store, listening at ``address`` alone; port 0 is any that is free."""
    with socket.create_server((address, port)) as listener:
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            address,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listener.fileno(),
        )
        listener.detach()  # the store closes it
    return store


def loopback_address(host: str) -> str | None:
    """The address of ``host`` if it is on the loopback, else None."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return None
    return address if ipaddress.ip_address(address).is_loopback else None
