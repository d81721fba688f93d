"""`save` and `load`: one small file for a tree of arrays and packed parameters.

A file is a safetensors header of one tensor of bytes, a version, a body (see `container`), and a
checksum of all bytes before it. Files are renamed into place, so that they are complete or absent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from nnopt_jax.arrays import is_node
from nnopt_jax.artifact import container
from nnopt_jax.artifact.codec import EFFORTS
from nnopt_jax.errors import ArtifactError, ValueRangeError, nearest
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten

DEFAULT_MAX_BYTES = 1 << 33
"""The default limit on the bytes of arrays: 8 GiB."""
_SLACK = 1 << 20
"""The number of bytes by which a file may exceed the size of its arrays."""
VERSION = 3
"""The format of new files. Formats 1 and 2 have a coded description; 2 may hold a program."""
_SUM_BYTES = 4
_IN_MEMORY = 1 << 24
"""Streams of more bytes than this are collected in a temporary file."""
_BLOCK = 1 << 20
_LONG = 1 << 26
"""The bytes of arrays from which saving takes long enough to show a bar."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Any = None,
    program: bytes = b"",
    effort: str = "default",
    progress: bool | None = None,
) -> None:
    """Save a tree in one small file.

    Codes, masks and indices are entropy-coded in the context of their neighbors. Arrays that occur
    twice are written once. The file is renamed into place, so that it is complete or absent.

    Args:
        path: the file to write, usually with the ending `.nnopt`.
        tree: pytree of arrays and nodes, as `tx.pack` returns it. Dictionaries, lists, tuples and
            None are kept; other containers become dictionaries of their fields, and keys become
            strings.
        metadata: any JSON, to save with the tree.
        program: a serialized program that takes the tree, stored unchanged;
            `nnopt_jax.transfer.save_model` passes it.
        effort: the time to spend on the size of the file. "fast" codes every array with a table
            of frequencies, some 100 M codes in a second; "default" also codes small arrays in the
            context of their neighbors, for a few seconds in all; "smallest" all arrays below
            about a million codes, at a million in five seconds. `load` reads them all.
        progress: whether to show a bar on the standard error; by default for large trees, if it is
            a terminal.

    Raises:
        ArtifactError: a leaf is not an array of numbers, or the file cannot be written; an older
            file at `path` is untouched.
        ValueRangeError: the metadata is not JSON, `path` is not a path, `program` is not bytes, or
            `effort` is unknown.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"w": jnp.arange(3)})
        ...     nnopt.load(f"{folder}/model.nnopt")
        {'w': Array([0, 1, 2], dtype=int32)}
    """
    _check_path("save", path)
    if not isinstance(program, bytes):
        raise ValueRangeError(
            f"save: program is of type {type(program).__name__}, not bytes; "
            "nnopt.transfer.save_model(path, structure, params) writes a model as a whole."
        )
    if effort not in EFFORTS:
        raise ValueRangeError(
            f"save: effort is {effort!r}, not one of {', '.join(map(repr, EFFORTS))}."
            f"{nearest(str(effort), EFFORTS)}"
        )
    leaves = jax.tree.leaves(flatten(tree, is_node))  # by path, for trees that JAX cannot sort
    total = sum(getattr(leaf, "nbytes", 0) for leaf in leaves)
    bar = _bar(path, total, progress)
    folder = os.path.dirname(os.path.realpath(path))
    try:
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder) as streams, bar as advance:
            head = container.write_streams(streams, tree, metadata, program, effort, advance)
            size = len(head) + streams.tell()
            streams.seek(0)
            blocks = iter(lambda: streams.read(_BLOCK), b"")
            replace_file(path, _sealed(itertools.chain([head], blocks), size))
    except OSError as error:
        raise ArtifactError(
            f"save: cannot write {total} bytes of arrays to {os.fspath(path)}: "
            f"{error.strerror or error}. What was there before is untouched."
        ) from error


@contextlib.contextmanager
def _bar(
    path: str | os.PathLike[str], total: int, shown: bool | None
) -> Iterator[Callable[[int], None]]:
    """Show a bar of the bytes that are coded; yield the function that advances it."""
    if shown is None:
        shown = total >= _LONG and sys.stderr.isatty()
    if not shown:
        yield lambda nbytes: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"save {os.path.basename(path)}", total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


def _check_path(caller: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ValueRangeError(
            f"{caller}: path is of type {type(path).__name__}; give the name of a file, "
            "'model.nnopt'."
        )


def load(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Load a tree, bit for bit, without model code or pickle.

    Args:
        path: a file that `save` wrote.
        max_bytes: the greatest number of bytes that the arrays may take in memory, masks included.
            A file that declares more raises an error before anything is allocated.

    Returns:
        The tree, in the nodes and containers that were saved. Leaves are JAX arrays; those of
        64-bit dtypes are NumPy arrays where JAX has these dtypes disabled.

    Raises:
        ValueRangeError: `path` is not a path, or `max_bytes` is not a whole number.
        ArtifactError: the file does not exist, is damaged, has an unknown version, or is too large.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"kernel": jnp.eye(2, dtype=jnp.int8)})
        ...     nnopt.load(f"{folder}/model.nnopt", max_bytes=1000)
        {'kernel': Array([[1, 0],
               [0, 1]], dtype=int8)}
    """
    return container.read(contents(path, max_bytes))


def contents(path: str | os.PathLike[str], max_bytes: int) -> container.Contents:
    """Return the contents of a file before any array is decoded; raises like `load`."""
    settings = Settings("load")
    settings.integer("max_bytes", max_bytes, 0)
    settings.done()
    _check_path("load", path)
    try:
        size = os.path.getsize(path)
        if size > max_bytes + _SLACK:
            raise ArtifactError(f"load: a file of {size} bytes, and max_bytes is {max_bytes}.")
        return container.contents(*unseal(Path(path).read_bytes()), max_bytes)
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error


def _header(size: int) -> bytes:
    """Return the length and the text of the safetensors header of one tensor of bytes."""
    text = b'{"nnopt":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    return len(text).to_bytes(8, "little") + text


def seal(body: bytes, version: int = VERSION) -> bytes:
    """Wrap a body in the header, version and checksum of a file.

    Args:
        body: the body of the file.
        version: the version of its format.

    Returns:
        Header, version, body and CRC-32, as a file that `safetensors` can open.

    Example:
        >>> unseal(seal(b"abc"))
        (b'abc', 3)
    """
    return b"".join(_sealed([body], len(body), version))


def _sealed(body: Iterable[bytes], size: int, version: int = VERSION) -> Iterator[bytes]:
    """Yield the bytes of a file, whose body has `size` bytes in some blocks."""
    checksum = 0
    for block in itertools.chain([_header(1 + size + _SUM_BYTES) + bytes([version])], body):
        checksum = zlib.crc32(block, checksum)
        yield block
    yield checksum.to_bytes(_SUM_BYTES, "little")


def unseal(data: bytes) -> tuple[bytes, int]:
    """Check and remove header, version and checksum; the inverse of `seal`.

    Args:
        data: the bytes of a file, untrusted.

    Returns:
        The body, and the version of its format.

    Raises:
        ArtifactError: the file is damaged, has a newer format, or is another kind of file.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    if data[8:17] != b'{"nnopt":':
        raise ArtifactError("load: this is not an .nnopt file.")
    if data[:start] != _header(len(data) - start) or len(data) < start + 1 + _SUM_BYTES:
        raise ArtifactError(
            f"load: the header does not fit a file of {len(data)} bytes: it was cut short or "
            "damaged; copy or write it again."
        )
    if not 1 <= data[start] <= VERSION:
        raise ArtifactError(
            f"load: the file has version {data[start]}, this library reads 1 to {VERSION}. "
            "Read it with the version of nnopt_jax that wrote it."
        )
    if zlib.crc32(data[:-_SUM_BYTES]).to_bytes(_SUM_BYTES, "little") != data[-_SUM_BYTES:]:
        raise ArtifactError("load: the checksum is wrong: the file is damaged.")
    return data[start + 1 : -_SUM_BYTES], data[start]


def replace_file(path: str | os.PathLike[str], chunks: Iterable[Any]) -> None:
    """Write a file atomically: to a temporary file that is flushed and then renamed.

    Args:
        path: the file. An older file is replaced, or untouched after an error. Links are followed.
        chunks: the content in order, each bytes or a buffer of bytes.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_file(f"{folder}/a", [b"wh", b"ole"])
        ...     Path(f"{folder}/a").read_bytes()
        b'whole'
    """
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
    try:
        with open(beside, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
