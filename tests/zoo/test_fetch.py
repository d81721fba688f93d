"""Downloads from mirrors of our own: right files, wrong files, no mirror, a full disk."""

from __future__ import annotations

import hashlib
import http.server
import resource
import socket
import sys
import threading
from urllib.parse import urlsplit

import pytest

from nnopt_jax.errors import RecipeError
from nnopt_jax.zoo import data
from nnopt_jax.zoo.data import MIRRORS, MNIST_FILES, fetch_mnist, mnist

CONTENT = {name: name.encode() * 10_000 for name in MNIST_FILES}


class Mirror(http.server.ThreadingHTTPServer):
    """A server on this machine that gives files out of a dictionary and counts the requests."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = files, []
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        found = self.server.files.get(name)
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    """A mirror that has the four files, whose sums are the expected ones."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, content in CONTENT.items():
        monkeypatch.setitem(data._SHA256, name, hashlib.sha256(content).hexdigest())
    server = Mirror(dict(CONTENT))
    yield server
    server.stop()


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_four_files_arrive_and_nothing_else(mirror, tmp_path):
    paths = fetch_mnist(tmp_path / "a" / "mnist", [mirror.url])
    assert [path.name for path in paths] == list(MNIST_FILES)
    assert names(tmp_path / "a" / "mnist") == sorted(MNIST_FILES)
    assert all(path.read_bytes() == CONTENT[path.name] for path in paths)


def test_right_files_are_left_alone_and_wrong_ones_replaced(mirror, tmp_path):
    *_, last = fetch_mnist(tmp_path / "mnist", [mirror.url])
    last.write_bytes(last.read_bytes()[:-5])
    mirror.asked.clear()
    fetch_mnist(tmp_path / "mnist", [mirror.url])
    assert mirror.asked == [last.name]
    assert last.read_bytes() == CONTENT[last.name]


def test_a_mirror_that_fails_is_followed_by_the_next(mirror, tmp_path):
    broken = Mirror({name: b"other" for name in MNIST_FILES[:2]})  # wrong sums, then 404
    try:
        paths = fetch_mnist(tmp_path / "mnist", [broken.url, mirror.url])
    finally:
        broken.stop()
    assert broken.asked == list(MNIST_FILES)
    assert all(path.read_bytes() == CONTENT[path.name] for path in paths)


def test_a_wrong_checksum_writes_nothing(mirror, tmp_path):
    mirror.files[MNIST_FILES[0]] = b"other"
    with pytest.raises(RecipeError, match=r"(?s)no mirror gave train-images.*127\.0\.0\.1.*hash"):
        fetch_mnist(tmp_path / "mnist", [mirror.url])
    assert names(tmp_path / "mnist") == []


def test_every_mirror_and_its_failure_is_named(mirror, tmp_path):
    mirror.files.clear()
    with pytest.raises(RecipeError) as error:
        fetch_mnist(tmp_path / "mnist", [mirror.url, "http://127.0.0.1:9/"])
    text = str(error.value)
    assert "404" in text
    assert "http://127.0.0.1:9/: " in text
    assert text.endswith(f"Put these files into the folder by hand: {', '.join(MNIST_FILES)}")


def test_without_pooch_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(RecipeError, match=r"pooch.*pip install 'nnopt-jax\[examples\]'"):
        fetch_mnist(tmp_path / "mnist")
    assert names(tmp_path / "mnist") == []


def test_a_full_disk_leaves_no_half_file(mirror, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RecipeError, match=r"(?s)cannot be written to .*mnist.*File too large"):
            fetch_mnist(tmp_path / "mnist", [mirror.url])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "mnist") == []


@pytest.mark.slow
def test_the_real_mirrors_have_the_real_files(tmp_path):
    try:
        socket.create_connection((urlsplit(MIRRORS[0]).hostname, 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"the mirrors cannot be reached: {error}")
    for mirror in MIRRORS:
        fetch_mnist(tmp_path / urlsplit(mirror).hostname, [mirror])
    got = mnist(tmp_path / urlsplit(mirror).hostname)
    assert (len(got.train), len(got.valid), len(got.test)) == (55_000, 5_000, 10_000)
    assert got.train.x.mean() == pytest.approx(0.1307, abs=1e-3)
