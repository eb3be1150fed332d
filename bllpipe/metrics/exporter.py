"""A thread beside the loops of a rank: opens its port, says where it is, and writes the text file every few seconds.

Whatever goes wrong here is a warning: figures are never worth a run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import write_to_textfile

from bllpipe.config.books import MetricsConfig
from bllpipe.metrics.collector import registry
from bllpipe.metrics.discovery import Discovery, address, announce, copy_name
from bllpipe.metrics.serving import Listener
from bllpipe.metrics.source import Source
from bllpipe.ports import Store
from bllpipe.run.directory import RunDirectory

EVERY_SECONDS = 2.0


def warn(text: str) -> None:
    print(f"bllpipe: {text}", file=sys.stderr, flush=True)


class Exporter:
    """Tells the figures of ``source`` as ``settings`` say; the ranks of the run are those ``roles`` describes."""

    def __init__(
        self,
        settings: MetricsConfig,
        source: Source,
        roles: Sequence[str],
        store: Store,
        directory: RunDirectory,
        warn: Callable[[str], None] = warn,
    ) -> None:
        self._settings, self._source, self._store, self._warn = settings, source, store, warn
        self._listener: Listener | None = None
        self._discovery: Discovery | None = None
        if settings.port is not None and source.part.rank == 0:
            copy = copy_name(settings.discovery, source.run_name)
            self._discovery = Discovery(store, directory, copy, source, roles)
        self._textfile = _textfile(settings.textfile, source) if settings.textfile is not None else None
        self._written = registry(source, source.labels)
        self._said: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The rank has nothing more to tell: nobody shall look for it, or take old figures for new ones."""
        self.stop()
        with suppress(OSError):
            if self._discovery is not None:
                self._discovery.end()
            if self._textfile is not None:
                self._textfile.unlink(missing_ok=True)

    def stop(self) -> None:
        """Tells no more; what was written stays, for those who ask why the run has failed."""
        self._over.set()
        self._thread.join(timeout=5)
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        try:
            if self._settings.port is not None:
                self._listen(self._settings.port)
            self._tell()
            while not self._over.wait(EVERY_SECONDS):
                self._tell()
        except RuntimeError:  # the store is gone with its launcher, and so will we be
            return

    def _listen(self, port: int) -> None:
        rank, host = self._source.part.rank, self._settings.host
        own = port + rank if port else 0
        try:
            self._listener = Listener(registry(self._source), host, own, self._source.path)
        except OSError as error:
            self._warn(
                f"rank {rank} tells no figures: it cannot listen at {host}:{own} ({error.strerror or error}); the run "
                f"goes on. For figures, free the port, or start with --set metrics.port=0 for any free one"
            )
        announce(self._store, rank, address(host, self._listener.port) if self._listener else None)

    def _tell(self) -> None:
        try:
            if self._discovery is not None:
                self._discovery.look()
            if self._textfile is not None:
                write_to_textfile(str(self._textfile), self._written)
        except OSError as error:
            self._warn_once(
                f"rank {self._source.part.rank} cannot write figures to {error.filename} ({error.strerror}); the run "
                f"goes on, and tries again"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(text)


def _textfile(folder: str, source: Source) -> Path:
    return Path(folder) / f"bllpipe-{source.run_name}-{source.part.rank}.prom"
