"""A thread of every rank exports its metrics: over HTTP, to a text file, and rank 0 lists all ranks for Prometheus'
file-based service discovery (file_sd).

An error here is a warning: metrics never end a run. Each HTTP request has its own thread, so that a slow client delays
no other, and metrics are read only on request. prometheus.json in the run directory lists the ranks:

  [{"targets": ["127.0.0.1:9502"],
    "labels": {"run": "digits", "rank": "2", "role": "block 2", "instance": "digits rank 2",
               "__metrics_path__": "/metrics/0-2f6c90"}}, ...]

Prometheus adds the labels to every metric; without instance it would derive that label from the address. A run that
completes or is stopped leaves an empty list, so a listed rank that does not answer was killed or has failed. After a
failure the labels status and error are added here, as the process is gone.
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
from bllpipe.config.running import MetricsConfig
from bllpipe.engines import Callback
from bllpipe.engines.job import Job
from bllpipe.errors import BllpipeError
from bllpipe.messages import Store
from bllpipe.tools.monitoring.metrics import METRICS, SETTINGS, VERSIONS, Source, file_time
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.worker import Worker
from bllpipe.utils.console import warn
from bllpipe.version import __version__

EVERY_SECONDS = 2.0
FAILURE_SECONDS = 1.0  # for the thread to end when the run has failed: other ranks wait for that
KINDS: dict[str, type[CounterMetricFamily | GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}
PATH = "/metrics"
POLL_SECONDS = 0.1  # how often the server checks whether it shall close
REQUEST_SECONDS = 10.0  # a connection on which no request arrives is closed after so long
ALL_INTERFACES = ("", "0.0.0.0")  # noqa: S104  # possible values of metrics.host, never its default


class Exporter:
    """Exports the metrics of ``source`` as ``settings`` say. ``roles`` holds the role of every rank of the run."""

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
        if settings.port is not None and source.worker.rank == 0:
            copy = copy_name(settings.discovery, source.run_name)
            self._discovery = Discovery(store, directory, copy, source, roles)
        self._textfile: Path | None = None
        if settings.textfile is not None:
            self._textfile = Path(settings.textfile) / f"bllpipe-{source.run_name}-{source.worker.rank}.prom"
        self._textfile_registry = registry(source, source.labels)
        self._warned: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """At the end of a run: stops, empties the list of ranks and removes the text file, so that no reader takes old
        values for current ones."""
        self.stop()
        with suppress(OSError):
            if self._discovery is not None:
                self._discovery.clear()
            if self._textfile is not None:
                self._textfile.unlink(missing_ok=True)

    def stop(self, timeout: float = 5.0) -> None:
        """After a failure: stops, but leaves the files, which show the last values."""
        self._stop.set()
        self._thread.join(timeout)
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        try:
            if self._settings.port is not None:
                self._listen(self._settings.port)
            self._write_files()
            while not self._stop.wait(EVERY_SECONDS):
                self._write_files()
        except RuntimeError:  # the store has ended with the launcher, which is about to end this process too
            return

    def _listen(self, port: int) -> None:
        rank, host = self._source.worker.rank, self._settings.host
        rank_port = port + rank if port else 0
        try:
            self._listener = Listener(registry(self._source), host, rank_port, self._source.path)
        except OSError as error:
            self._warn(
                f"rank {rank} exports no metrics: it cannot listen at {host}:{rank_port} ({error.strerror or error}); "
                f"the run continues. Free the port, or use --set metrics.port=0 for any free one"
            )
        announce(self._store, rank, address(host, self._listener.port) if self._listener else None)

    def _write_files(self) -> None:
        try:
            if self._discovery is not None:
                self._discovery.update()
            if self._textfile is not None:
                write_to_textfile(str(self._textfile), self._textfile_registry)
        except OSError as error:
            text = (
                f"rank {self._source.worker.rank} cannot write metrics to {error.filename} ({error.strerror}); the run "
                f"continues, and the rank tries again every {EVERY_SECONDS:g} s"
            )
            if text not in self._warned:
                self._warned.add(text)
                self._warn(text)


class RankCollector:
    """prometheus_client's interface to the metrics of one rank; adds ``labels`` to those of every metric."""

    def __init__(self, source: Source, labels: Mapping[str, str] | None = None) -> None:
        self._source, self._labels = source, labels or {}

    def collect(self) -> Iterator[Metric]:
        """The metrics that have a value."""
        for definition in METRICS:
            labels = [*self._labels, *definition.reading.labels]
            metric = KINDS[definition.kind](definition.name, definition.doc, labels=labels)
            for values, value in definition.reading.samples(self._source):
                metric.add_metric([*self._labels.values(), *values], value)
            if metric.samples:
                yield metric


def registry(source: Source, labels: Mapping[str, str] | None = None) -> CollectorRegistry:
    """A registry of the metrics of ``source`` alone."""
    made = CollectorRegistry(auto_describe=False)
    made.register(RankCollector(source, labels))
    return made


class _RequestHandler(WSGIRequestHandler):
    """Logs no requests, and closes idle connections."""

    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:
        """Does nothing."""


class Listener:
    """An HTTP server at ``host`` and ``port`` (0: any free one), which starts at once. Raises OSError when the port is
    in use.

    Prometheus reads ``own_path``, which differs for every start of a run: if another run listens at this port later, a
    Prometheus that still looks for this run gets error 404 instead of the other run's metrics. People may use /metrics.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, own_path: str) -> None:
        metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["PATH_INFO"] in (PATH, own_path):
                return metrics(environ, start_response)
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [f"the metrics are at {PATH}\n".encode()]

        self._server = make_server(host, port, app, ThreadingWSGIServer, _RequestHandler)
        self.port = self._server.server_port
        serve = partial(self._server.serve_forever, poll_interval=POLL_SECONDS)
        threading.Thread(target=serve, name="metrics port", daemon=True).start()

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()


class PrometheusExport(Callback):
    """Exports the metrics of every worker from its start to its end, and marks a run that has failed."""

    def __init__(self) -> None:
        self._exporters: dict[int, Exporter] = {}

    def on_start(self, job: Job, store: Store, worker: Worker) -> None:
        roles = [job.topology.role(rank) for rank in range(job.topology.world_size)]
        exporter = Exporter(job.config.metrics, source_of(job, worker), roles, store, job.directory)
        exporter.start()
        self._exporters[worker.rank] = exporter

    def on_end(self, worker: Worker) -> None:
        self._exporters.pop(worker.rank).close()

    def on_failure(self, run_directory: Path, error: BaseException) -> None:
        while self._exporters:
            _, exporter = self._exporters.popitem()
            exporter.stop(FAILURE_SECONDS)  # before the marks, which it would overwrite
        mark_failed(RunDirectory(run_directory), type(error).__name__)


def source_of(job: Job, worker: Worker) -> Source:
    """Everything from which the metrics of ``worker`` are read."""
    config = job.config
    return Source(
        worker=worker,
        run_name=job.directory.path.name,
        attempt=job.attempt,
        restarts=job.restarts,
        start=job.start,
        last_step=job.schedule.last_step,
        save_every=job.schedule.save_every,
        settings=dict(zip(SETTINGS, (config.method, config.engine, config.model.name, config.data.name), strict=True)),
        versions=dict(zip(VERSIONS, (__version__, torch.__version__, platform.python_version()), strict=True)),
        resumed_from=file_time(job.checkpoint.path / "manifest.json") if job.checkpoint else None,
    )


def announce(store: Store, rank: int, address: str | None) -> None:
    """Tells rank 0, through the store, at which address ``rank`` listens; None: at none."""
    store.set(_key(rank), address or "")


def address(host: str, port: int) -> str:
    """The address for other machines: with this machine's name if ``host`` stands for all of its interfaces."""
    return f"{socket.gethostname() if host in ALL_INTERFACES else host}:{port}"


def copy_name(folder: str | None, run_name: str) -> Path | None:
    """The copy of prometheus.json in the folder of ``metrics.discovery``, which holds those of all runs."""
    return Path(folder) / f"bllpipe-{run_name}.json" if folder is not None else None


class Discovery:
    """Rank 0: writes prometheus.json when ranks have announced their addresses."""

    def __init__(
        self, store: Store, directory: RunDirectory, copy: Path | None, source: Source, roles: Sequence[str]
    ) -> None:
        self._store, self._directory, self._copy = store, directory, copy
        self._source, self._roles = source, roles
        self._addresses: dict[int, str] = {}
        self._is_written = False

    def update(self) -> None:
        """Reads new announcements from the store, without waiting; writes the file if there are any."""
        missing = [rank for rank in range(len(self._roles)) if rank not in self._addresses]
        new = {rank: self._store.get(_key(rank)).decode() for rank in missing if self._store.check([_key(rank)])}
        self._addresses |= new
        self._is_written = self._is_written and not new
        if not self._is_written:
            run, found = self._source.run_name, sorted((r, a) for r, a in self._addresses.items() if a)
            groups = [
                {
                    "targets": [address],
                    "labels": {
                        "run": run,
                        "rank": str(rank),
                        "role": self._roles[rank],
                        "instance": f"{run} rank {rank}",
                        "__metrics_path__": self._source.path,
                    },
                }
                for rank, address in found
            ]
            self._directory.write_targets(groups, self._copy)
            self._is_written = True

    def clear(self) -> None:
        """Writes an empty list: Prometheus forgets the ranks."""
        self._directory.write_targets([], self._copy)


def mark_failed(directory: RunDirectory, error: str) -> None:
    """Adds the labels status and error to all ranks that prometheus.json lists, if there is one."""
    groups = directory.read_targets()
    if not groups:
        return
    failed = [{**group, "labels": {**group["labels"], "status": "failed", "error": error}} for group in groups]
    try:
        folder = load_stored_config(str(directory.path / "config.yaml")).metrics.discovery
        directory.write_targets(failed, copy_name(folder, directory.path.name))
    except (OSError, BllpipeError):  # the failure of the run is reported, not this one
        return


def _key(rank: int) -> str:
    return f"metrics/{rank}"
