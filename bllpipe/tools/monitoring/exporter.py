"""A thread beside the loops of a rank exports its metrics: over HTTP, in a text file, and to Prometheus' file_sd.

Whatever goes wrong here is a warning: metrics never end a run. Each request has a thread, so a slow one delays no
other, and metrics are read only when asked for. prometheus.json in the run directory lists the ranks:

  [{"targets": ["127.0.0.1:9502"],
    "labels": {"run": "digits", "rank": "2", "role": "block 2", "instance": "digits rank 2",
               "__metrics_path__": "/metrics/0-2f6c90"}}, ...]

Prometheus takes the labels over; without instance it would make one of the address. A run that ends in order leaves an
empty list, so a rank that is listed and does not answer was killed, or has failed. A failed one has two more labels,
status and error, as its process cannot be asked.
"""

from __future__ import annotations

import platform
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import torch
from prometheus_client import CollectorRegistry, make_wsgi_app, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer

from bllpipe.config.loader import load_stored_config
from bllpipe.config.schema import MetricsConfig
from bllpipe.engines.job import Job
from bllpipe.errors import BllpipeError
from bllpipe.messages import Store
from bllpipe.tools.monitoring.metrics import FAMILIES, MetricDef, Source, file_time
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.worker import Worker
from bllpipe.utils.console import warn
from bllpipe.version import __version__

EVERY_SECONDS = 2.0
KINDS: dict[str, type[CounterMetricFamily | GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}
PATH = "/metrics"
LOOK_SECONDS = 0.1  # between two looks whether to close
ASK_SECONDS = 10.0  # whoever has connected and says nothing is left alone after so long
EVERYWHERE = ("", "0.0.0.0")  # noqa: S104  # found in a config, never the default


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


class RankCollector:
    """All figures of one rank, each with ``labels`` on top of its own."""

    def __init__(self, source: Source, labels: Mapping[str, str] | None = None) -> None:
        self._source, self._labels = source, labels or {}

    def collect(self) -> Iterator[Metric]:
        """Those of which there is a value."""
        for family in FAMILIES:
            metric = self._metric(family)
            if metric.samples:
                yield metric

    def _metric(self, family: MetricDef) -> Metric:
        metric = KINDS[family.kind](family.name, family.doc, labels=[*self._labels, *family.labels])
        for values, value in family.samples(self._source):
            metric.add_metric([*self._labels.values(), *values], value)
        return metric


def registry(source: Source, labels: Mapping[str, str] | None = None) -> CollectorRegistry:
    """A registry with nothing but the figures of ``source``."""
    made = CollectorRegistry(auto_describe=False)
    made.register(RankCollector(source, labels))
    return made


class _Quiet(WSGIRequestHandler):
    """Says nothing of every request. The standard library wants a class."""

    timeout = ASK_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class Listener:
    """Answers at ``host`` and ``port`` (0: any free one) from now on. Raises OSError when the port is taken.

    Prometheus asks for ``own_path``, which is another one for every start of a run: if another run listens here later,
    whoever still looks for this one gets no figures instead of false ones. People may ask for /metrics.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, own_path: str) -> None:
        app = _only({PATH, own_path}, make_wsgi_app(registry))
        self._server = make_server(host, port, app, ThreadingWSGIServer, _Quiet)
        self.port = self._server.server_port
        serve = partial(self._server.serve_forever, poll_interval=LOOK_SECONDS)
        threading.Thread(target=serve, name="metrics port", daemon=True).start()

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()


def _only(paths: set[str], app: Callable[..., Iterable[bytes]]) -> Any:
    """``app``, which knows one page, at ``paths`` and nowhere else."""

    def routed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] in paths:
            return app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [f"the figures are at {PATH}\n".encode()]

    return routed


def monitored(job: Job, part: Worker) -> Worker:
    """The part, which tells its figures from now on if the config asks for it."""
    settings, layout = job.config.metrics, job.topology
    if settings.port is None and settings.textfile is None:
        return part
    roles = [layout.role(rank) for rank in range(layout.world_size)]
    exporter = Exporter(settings, source_of(job, part), roles, job.store, job.directory)
    exporter.start()
    part.on_end, part.on_failure = exporter.close, exporter.stop
    return part


def source_of(job: Job, part: Worker) -> Source:
    """The rank, and what is known of its run."""
    config = job.config
    return Source(
        part=part,
        run_name=job.directory.path.name,
        attempt=job.attempt,
        restarts=int(job.attempt.partition("-")[0]),
        start=job.start,
        last_step=job.plan.last_step,
        save_every=job.plan.save_every,
        settings={
            "method": config.method,
            "engine": config.engine,
            "model": config.model.name,
            "data": config.data.name,
        },
        versions={
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        resumed_from=file_time(job.checkpoint.path / "manifest.json") if job.checkpoint else None,
    )


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
