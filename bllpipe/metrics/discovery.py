"""prometheus.json in the run directory: where each rank tells its figures, in the format of Prometheus' file_sd.

  [{"targets": ["127.0.0.1:9502"],
    "labels": {"run": "digits", "rank": "2", "role": "block 2", "instance": "digits rank 2",
               "__metrics_path__": "/metrics/0-2f6c90"}}, ...]

Prometheus takes the labels over; without instance it would make one of the address. A run that ends in order leaves an
empty list, so whoever is listed and does not answer was killed, or has failed. What fails says so in two more labels,
status and error: nobody can ask a process that is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bllpipe.config.stored import load_stored_config
from bllpipe.errors import BllpipeError
from bllpipe.metrics.source import Source
from bllpipe.ports import Store
from bllpipe.run.directory import RunDirectory

EVERYWHERE = ("", "0.0.0.0")  # noqa: S104  # found in a config, never the default


def announce(store: Store, rank: int, address: str | None) -> None:
    """Tells rank 0 where ``rank`` listens; None: nowhere."""
    store.set(_key(rank), address or "")


def address(host: str, port: int) -> str:
    """Where others find what listens at ``host``: by the name of this machine if that is every address of it."""
    return f"{socket.gethostname() if host in EVERYWHERE else host}:{port}"


def copy_name(folder: str | None, run_name: str) -> Path | None:
    """The copy in the folder that Prometheus looks at for all runs."""
    return Path(folder) / f"bllpipe-{run_name}.json" if folder is not None else None


class Discovery:
    """Writes prometheus.json as the ranks ``roles`` describes say where they are. Rank 0 has it."""

    def __init__(
        self, store: Store, directory: RunDirectory, copy: Path | None, source: Source, roles: Sequence[str]
    ) -> None:
        self._store, self._directory, self._copy = store, directory, copy
        self._source, self._roles = source, roles
        self._addresses: dict[int, str] = {}
        self._is_written = False

    def look(self) -> None:
        """Asks for those that have said nothing yet, without waiting; writes the file if there is news."""
        missing = [rank for rank in range(len(self._roles)) if rank not in self._addresses]
        news = {rank: self._store.get(_key(rank)).decode() for rank in missing if self._store.check([_key(rank)])}
        self._addresses |= news
        self._is_written = self._is_written and not news
        if not self._is_written:
            self._directory.write_targets(self._groups(), self._copy)
            self._is_written = True

    def end(self) -> None:
        """Nobody is to be asked any more."""
        self._directory.write_targets([], self._copy)

    def _groups(self) -> list[dict[str, Any]]:
        found = sorted((rank, address) for rank, address in self._addresses.items() if address)
        return [{"targets": [address], "labels": self._labels(rank)} for rank, address in found]

    def _labels(self, rank: int) -> dict[str, str]:
        run = self._source.run_name
        place = {"run": run, "rank": str(rank), "role": self._roles[rank]}
        return {**place, "instance": f"{run} rank {rank}", "__metrics_path__": self._source.path}


def mark_failed(directory: RunDirectory, error: str) -> None:
    """Puts the failure, by its kind, into the labels of all ranks of the run, if it has any."""
    groups = directory.read_targets()
    if not groups:
        return
    failed = [{**group, "labels": {**group["labels"], "status": "failed", "error": error}} for group in groups]
    try:
        folder = load_stored_config(str(directory.path / "config.yaml")).metrics.discovery
        directory.write_targets(failed, copy_name(folder, directory.path.name))
    except (OSError, BllpipeError):  # there is a failure to be reported, and this is not it
        return


def _key(rank: int) -> str:
    return f"metrics/{rank}"
