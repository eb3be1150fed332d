"""A Prometheus of our own: started on a free port, asked over HTTP, ended."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.waiting import wait_until

DOCKER = Path(__file__).parents[2] / "docker"
MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not found; make test-prometheus installs them on Debian as root"
)


@dataclass(frozen=True)
class Prometheus:
    """One that runs, at ``port`` of this machine."""

    port: int

    def query(self, expression: str, moment: float | None = None) -> list[dict[str, Any]]:
        """What an instant query gives, at ``moment`` or now: series with labels and value."""
        at = {} if moment is None else {"time": f"{moment:.3f}"}
        found: list[dict[str, Any]] = self.ask("query", query=expression, **at)["result"]
        return found

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API; an expression that is wrong is an HTTPError."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            record = json.load(answer)
        assert record["status"] == "success", record
        return record["data"]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, targets: list[Path]) -> Iterator[Prometheus]:
    """Scrapes what the ``targets`` files list every second, and evaluates our alerts as often."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_every_second(targets)))
    where = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(["prometheus", *where], stdout=log, stderr=subprocess.STDOUT)
    try:
        found = Prometheus(port)
        wait_until(found.is_ready)
        yield found
    finally:
        server.terminate()
        server.wait(timeout=60)


def _every_second(targets: list[Path]) -> dict[str, Any]:
    """docker/prometheus.yml, quicker and with other targets."""
    config: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "alerts.yml")]
    discovery = {"files": [str(path) for path in targets], "refresh_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"] = [discovery]
    return config


def promtool(*words: str, text: str = "") -> str:
    """What ``promtool words`` says; fails when it finds fault."""
    done = subprocess.run(["promtool", *words], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"promtool {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
