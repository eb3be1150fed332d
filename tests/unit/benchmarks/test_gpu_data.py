"""Data sets that are brought to a machine without a network: small ones of the same form, with digests of their own."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu_data
from benchmarks.gpu_data import IDX_DIGESTS, data_of_package, keep, main, make
from bllpipe.config import load_config
from bllpipe.data.registry import load_images
from bllpipe.errors import ConfigError

SIZES = {"train": 6, "t10k": 4}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def idx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small IDX files, compressed."""
    folder, draw = tmp_path / "idx", np.random.default_rng(0)
    folder.mkdir()
    for name, size in SIZES.items():
        images = struct.pack(">4i", 2051, size, 28, 28) + draw.integers(0, 256, size * 784, np.uint8).tobytes()
        labels = struct.pack(">2i", 2049, size) + bytes(range(size))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            monkeypatch.setitem(IDX_DIGESTS, f"{name}-{kind}-ubyte", digest(content))
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


def package(folder: Path, path: Path) -> None:
    """The files of ``folder`` as a Debian package."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"./usr/share/datasets/fashion-mnist/{file.name}")
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    content = b"!<arch>\n"
    for name, value in members.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(value):<10}`\n".encode() + value + b"\n" * (len(value) % 2)
        )
    path.write_bytes(content)


def test_idx_files_become_a_set_that_a_run_reads(idx: Path, tmp_path: Path) -> None:
    told = make("fashion_mnist", [idx], tmp_path / "out.npz")
    assert "train_x [6, 28, 28]" in told and "59994 of 60000 training images are missing" in told
    config = load_config(None, ["data.name=npz", f"data.path={tmp_path / 'out.npz'}", "data.batch_size=2"])
    images = load_images(config.data, 0)
    assert (images.spec.num_train, images.spec.num_test) == (6, 4)


def test_a_package_holds_the_same(idx: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    package(idx, tmp_path / "package" / "dataset-fashion-mnist_1_all.deb")
    for name, folder in (("a", idx), ("b", tmp_path / "package")):
        make("fashion_mnist", [folder], tmp_path / f"{name}.npz")
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)
        assert one["train_y"].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.deb").write_bytes(b"!<arch>\n" + b"x" * 20)
    with pytest.raises(ConfigError, match="expected a Debian package with data.tar.* got 28 bytes"):
        data_of_package(tmp_path / "odd.deb")


def test_a_missing_file_is_named(idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (idx / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigError, match="expected t10k-labels-idx1-ubyte.gz.*apt-get download"):
        make("fashion_mnist", [idx], tmp_path / "out.npz")
    assert main(["fashion_mnist", str(idx), str(tmp_path / "out.npz")]) == 2
    assert "gpu_data: expected t10k-labels" in capsys.readouterr().err


def test_other_content_is_refused(idx: Path, tmp_path: Path) -> None:
    (idx / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"odd" * 10))
    with pytest.raises(ConfigError, match="expected t10k-labels-idx1-ubyte to hold content with SHA-256"):
        make("fashion_mnist", [idx], tmp_path / "out.npz")


@pytest.fixture
def grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two training grids and one of the test, of 2 x 2 images each, and their labels."""
    folder, draw = tmp_path / "grids", np.random.default_rng(0)
    folder.mkdir()
    monkeypatch.setattr(gpu_data, "GRID_SIDE", 2)
    for name in ("train_0", "train_1", "test_0"):
        pixels = draw.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.webp", lossless=True)
        tiles = [pixels[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
        monkeypatch.setitem(gpu_data.GRID_DIGESTS, name, digest(np.stack(tiles).tobytes()))
    np.savez(folder / "labels.npz", train=np.arange(8), test=np.arange(4))
    return folder


def test_grids_become_a_set(grids: Path, tmp_path: Path) -> None:
    assert "train_x [8, 32, 32, 3]" in make("cifar10", [grids], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found["train_y"].tolist() == list(range(8)) and found["test_y"].tolist() == list(range(4))


def test_grids_of_two_calls_are_one_set(grids: Path, tmp_path: Path) -> None:
    """Half of them is brought in a first call, and kept; without that the set is smaller, and says so."""
    first, kept = tmp_path / "first", tmp_path / "kept"
    first.mkdir()
    (grids / "train_0.webp").rename(first / "train_0.webp")
    assert keep([first], kept) == ["train_0.webp"]
    assert "train_x [8, " in make("cifar10", [grids, kept], tmp_path / "whole.npz")
    assert "49996 of 50000 training images are missing" in make(
        "cifar10", [grids, tmp_path / "no"], tmp_path / "half.npz"
    )
    with np.load(tmp_path / "half.npz") as found:
        assert found["train_y"].tolist() == [4, 5, 6, 7], "the labels of the second grid"


def test_without_a_test_set_nothing_is_written(grids: Path, tmp_path: Path) -> None:
    (grids / "test_0.webp").unlink()
    with pytest.raises(ConfigError, match="expected labels.npz, test_0.webp and at least one.*got train_0, train_1"):
        make("cifar10", [grids], tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_files_can_be_kept_from_the_command_line(
    grids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cifar10", str(grids), "--keep", str(tmp_path / "kept")]) == 0
    assert "labels.npz, test_0.webp, train_0.webp, train_1.webp" in capsys.readouterr().out
