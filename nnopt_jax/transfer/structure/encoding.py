"""The bytes of a structure: compressed JSON and programs, a version and a checksum."""

from __future__ import annotations

import json
import zlib
from typing import Any

from nnopt_jax.artifact.byte_io import ByteReader, framed, varint
from nnopt_jax.errors import ArtifactError

VERSION = 1
_MAGIC = b"nnopt structure\n"
_SUM_BYTES = 4
_WHO = "Structure.from_bytes"


def encode_structure(head: Any, programs: list[bytes]) -> bytes:
    """Encode a structure as bytes.

    Args:
        head: the description, as JSON.
        programs: the bytes of the programs, in the order of the head.

    Returns:
        The bytes.

    Example:
        >>> decode_structure(encode_structure({"a": 1}, [b"xyz"]), 1000)
        ({'a': 1}, [b'xyz'])
    """
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    plain = varint(len(programs)) + framed([text, *programs])
    body = _MAGIC + bytes([VERSION]) + varint(len(plain)) + zlib.compress(plain, 9)
    return body + zlib.crc32(body).to_bytes(_SUM_BYTES, "little")


def decode_structure(data: bytes, max_bytes: int) -> tuple[Any, list[bytes]]:
    """Decode the bytes of a structure; the inverse of `encode_structure`.

    Args:
        data: all bytes, untrusted.
        max_bytes: the greatest number of decompressed bytes.

    Returns:
        The head and the programs.

    Raises:
        ArtifactError: the data is not a structure, has another version, is damaged, or is too
            large.
    """
    if not data.startswith(_MAGIC):
        raise ArtifactError(f"{_WHO}: these {len(data)} bytes are not a structure.")
    body, checksum = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    reader = ByteReader(body[len(_MAGIC) :])
    version = reader.byte()
    if version != VERSION:
        raise ArtifactError(
            f"{_WHO}: the structure has version {version}, this library reads {VERSION}. "
            "Read it with the version of nnopt_jax that wrote it."
        )
    if zlib.crc32(body).to_bytes(_SUM_BYTES, "little") != checksum:
        raise ArtifactError(f"{_WHO}: the checksum is wrong: the bytes are damaged or cut short.")
    size = reader.varint()
    if size > max_bytes:
        raise ArtifactError(f"{_WHO}: declares {size} bytes, and max_bytes is {max_bytes}.")
    try:
        inflate = zlib.decompressobj()
        # One byte more than declared reveals a longer body without inflating all of it.
        plain = inflate.decompress(reader.rest(), size + 1)
        if len(plain) != size or not inflate.eof:
            raise ValueError(f"not {size} bytes")
        inner = ByteReader(plain)
        count = inner.varint()
        parts = [inner.part() if left else inner.rest() for left in range(count, -1, -1)]
        return json.loads(parts[0]), parts[1:]
    except (zlib.error, ValueError, RecursionError) as error:
        raise ArtifactError(f"{_WHO}: malformed ({error}).") from error
