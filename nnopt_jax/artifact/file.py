"""`save` and `load`: one small file for a tree of arrays and packed parameters.

A file is a safetensors header of one tensor of bytes, a version, a body (see `container`), and a
checksum over every byte before it. Files appear by a rename, and so are complete or absent.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnopt_jax.artifact import container
from nnopt_jax.errors import ArtifactError, ValueRangeError
from nnopt_jax.settings import Settings

DEFAULT_MAX_BYTES = 1 << 33
"""8 GiB."""
_SLACK = 1 << 20
"""The bytes by which a file may be larger than its arrays."""
VERSION = 3
"""The format of new files. 1 and 2 have a coded description, 2 holds a program as well."""
_SUM_BYTES = 4


def save(
    path: str | os.PathLike[str], tree: Any, *, metadata: Any = None, program: bytes = b""
) -> None:
    """Write a tree to one small file.

    Codes, masks and indices are entropy-coded in the context of their neighbors; arrays that occur
    twice are written once. The file appears by a rename: complete, or not at all.

    Args:
        path: the file to write; `.nnopt` by custom.
        tree: pytree of arrays and nodes, as `tx.pack` returns it. Dictionaries, lists, tuples and
            None stay what they are; other containers become dictionaries of their fields, and keys
            become strings.
        metadata: any JSON, to keep beside the tree.
        program: bytes of what computes with the tree, kept as they are; see
            `nnopt_jax.transfer.save_model`, which gives them.

    Raises:
        ArtifactError: a leaf is not an array of numbers, or the file cannot be written; the file
            that was at `path` before is untouched.
        ValueRangeError: the metadata is not JSON, `path` not a path, or `program` not bytes.

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
    data = sealed(container.write(tree, metadata, program))
    try:
        replace_file(path, [data])
    except OSError as error:
        raise ArtifactError(
            f"save: cannot write {len(data)} bytes to {os.fspath(path)}: "
            f"{error.strerror or error}. What was there before is untouched."
        ) from error


def _check_path(caller: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ValueRangeError(
            f"{caller}: path is of type {type(path).__name__}; give the name of a file, "
            "'model.nnopt'."
        )


def load(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Read a tree, bit for bit, with no model code and no pickle.

    Args:
        path: a file that `save` wrote.
        max_bytes: the most memory that the arrays may take, masks included; a file that declares
            more is refused before anything is allocated.

    Returns:
        The tree: JAX arrays, or NumPy's of 64 bits where JAX has those turned off, in the nodes
        and containers that were saved.

    Raises:
        ValueRangeError: `path` is not a path, or `max_bytes` not a whole number.
        ArtifactError: there is no such file; it is damaged, of an unknown version, or too large.

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
    """Return what a file holds, with no array decoded yet; raises as `load` does."""
    settings = Settings("load")
    settings.integer("max_bytes", max_bytes, 0)
    settings.done()
    _check_path("load", path)
    try:
        size = os.path.getsize(path)
        if size > max_bytes + _SLACK:
            raise ArtifactError(f"load: a file of {size} bytes, and max_bytes is {max_bytes}.")
        return container.contents(*unsealed(Path(path).read_bytes()), max_bytes)
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error


def _header(size: int) -> bytes:
    """Length and text of the header of one tensor of bytes."""
    text = b'{"nnopt":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    return len(text).to_bytes(8, "little") + text


def sealed(body: bytes, version: int = VERSION) -> bytes:
    """Put header and footer around a body.

    Args:
        body: the content.
        version: its format.

    Returns:
        Header, version, body and CRC-32: a file that `safetensors` opens.

    Example:
        >>> unsealed(sealed(b"abc"))
        (b'abc', 3)
    """
    data = _header(1 + len(body) + _SUM_BYTES) + bytes([version]) + body
    return data + zlib.crc32(data).to_bytes(_SUM_BYTES, "little")


def unsealed(data: bytes) -> tuple[bytes, int]:
    """Invert `sealed`; one flipped bit anywhere, header included, is found.

    Args:
        data: the bytes of a file; not trusted.

    Returns:
        The body, and the version of its format.

    Raises:
        ArtifactError: this is another file, a newer one, or a damaged one.
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
    """Write a file atomically: beside its place, flushed to the disk, then renamed.

    Args:
        path: the file; an older one is replaced, or left as it was. Links are followed.
        chunks: its content in order, each bytes or a buffer of bytes.

    Raises:
        OSError: it cannot be written.

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
