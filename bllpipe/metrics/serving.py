"""The port at which a rank tells its figures: a thread for every one that asks, so that a slow one delays nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

PATH = "/metrics"
LOOK_SECONDS = 0.1  # between two looks whether to close
ASK_SECONDS = 10.0  # whoever has connected and says nothing is left alone after so long


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
