"""Sets that have to be downloaded: the errors when they are missing and cannot be downloaded."""

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from torchvision.datasets import utils

from bllpipe.data import catalog
from bllpipe.data.catalog import DOWNLOADS, check_obtainable
from bllpipe.data.registry import fetch, original_set
from bllpipe.errors import DataError


def advice(name: str, path: Path, failure: str) -> str:
    """What the message has to say, as a pattern."""
    words = [f"{name} is not in {path} and could not be downloaded ({failure}"]
    words += [f"type\n  bllpipe data fetch {name} --path {path}\n", "--set data.path=FOLDER"]
    return "(?s)" + ".*".join(re.escape(part) for part in words)


@pytest.mark.parametrize("name", DOWNLOADS)
@pytest.mark.parametrize("failure", [URLError("no route to host"), OSError("disk full"), RuntimeError("bad digest")])
@pytest.mark.parametrize("load", [original_set, fetch])
def test_without_data_and_network_the_message_names_the_command(
    name: str, failure: Exception, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(url)
        raise failure

    asked: list[str] = []
    monkeypatch.setattr(utils, "download_and_extract_archive", download)
    with pytest.raises(DataError, match=advice(name, tmp_path, str(failure))):
        load(name, str(tmp_path))
    assert socket.getdefaulttimeout() is None
    assert len(asked) == (2 if name == "mnist" else 1)  # which has two mirrors


@pytest.mark.parametrize("name", DOWNLOADS)
def test_what_has_been_downloaded_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, root: str, filename: str, md5: str) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes(b"")
        assert url.endswith(filename) and len(md5) == 32

    monkeypatch.setattr(utils, "download_and_extract_archive", download)
    with pytest.raises(DataError, match="is damaged, or of another set"):
        original_set(name, str(tmp_path))


class Refusing(BaseHTTPRequestHandler):
    """A server that is there, and has nothing."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def refusing_server() -> Iterator[int]:
    """The port of a server that answers every request with 404."""
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def served_from(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 comes from this port of this machine, whose silence is believed quickly."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(DOWNLOADS, "cifar10", replace(DOWNLOADS["cifar10"], url=f"http://127.0.0.1:{port}/"))
    monkeypatch.setattr(catalog, "SERVER_TIMEOUT_SECONDS", 0.2)


@pytest.mark.parametrize(("is_open", "failure"), [(False, "<urlopen error"), (True, "timed out")])
def test_a_server_that_is_not_there_or_says_nothing(
    is_open: bool, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if is_open:
            listener.listen()
        served_from(listener.getsockname()[1], monkeypatch)
        with pytest.raises(DataError, match=advice("cifar10", tmp_path, failure)):
            check_obtainable("cifar10", str(tmp_path))


def test_a_server_that_answers_is_enough(tmp_path: Path, refusing_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    served_from(refusing_server, monkeypatch)
    monkeypatch.setattr(catalog, "SERVER_TIMEOUT_SECONDS", 30.0)
    check_obtainable("cifar10", str(tmp_path))


IDX = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
ALL_FILES = {  # of the folder of a trace
    "cifar-10-batches-py/data_batch_1": [*(f"data_batch_{number}" for number in range(2, 6)), "test_batch"],
    "cifar-100-binary/test.bin": ["train.bin"],
    "MNIST/raw/t10k-labels-idx1-ubyte": IDX,
    "t10k-labels-idx1-ubyte.gz": [f"{name}.gz" for name in IDX],
}
TRACES = {
    "cifar10": ["cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz"],
    "cifar100": ["cifar-100-binary/test.bin", "cifar-100-python.tar.gz"],
    "mnist": ["MNIST/raw/t10k-labels-idx1-ubyte"],
    "fashion_mnist": ["t10k-labels-idx1-ubyte.gz"],
}


@pytest.mark.parametrize(("name", "trace"), [(name, trace) for name in DOWNLOADS for trace in TRACES[name]])
def test_a_set_that_is_there_needs_no_server(
    name: str, trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(DOWNLOADS, name, replace(DOWNLOADS[name], url="http://127.0.0.1:1/"))
    with pytest.raises(DataError, match=f"{name} is not in"):
        check_obtainable(name, str(tmp_path))
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trace).touch()
    for other in ALL_FILES.get(trace, []):
        (tmp_path / trace).with_name(other).touch()
    check_obtainable(name, str(tmp_path))
