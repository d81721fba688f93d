"""The outside of a file: a safetensors header, a version, a checksum over every byte."""

from __future__ import annotations

import zlib

from nnopt_jax.errors import ArtifactError

VERSION = 1
WITH_PROGRAM = 2
"""Version of files that hold a program, which readers of the first do not know."""
_SUM_BYTES = 4


def _header(size: int) -> bytes:
    """Length and text of the header of one tensor of bytes."""
    text = b'{"nnopt":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    return len(text).to_bytes(8, "little") + text


def sealed(body: bytes, *, with_program: bool = False) -> bytes:
    """Makes a file of a body.

    Args:
        body: what is to be kept.
        with_program: whether there is a program in it.

    Returns:
        Header, version, body and CRC-32: a file that `safetensors` opens.

    Example:
        >>> opened(sealed(b"abc"))
        b'abc'
    """
    content = bytes([WITH_PROGRAM if with_program else VERSION]) + body
    whole = _header(len(content) + _SUM_BYTES) + content
    return whole + zlib.crc32(whole).to_bytes(_SUM_BYTES, "little")


def opened(data: bytes) -> bytes:
    """Undoes `sealed`; one flipped bit anywhere, header included, is found.

    Args:
        data: the bytes of a file; not trusted.

    Returns:
        The body.

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
    if data[start] not in (VERSION, WITH_PROGRAM):
        raise ArtifactError(
            f"load: the file has version {data[start]}, this library reads {VERSION} and "
            f"{WITH_PROGRAM}. "
            "Read it with the version of nnopt_jax that wrote it."
        )
    if zlib.crc32(data[:-_SUM_BYTES]).to_bytes(_SUM_BYTES, "little") != data[-_SUM_BYTES:]:
        raise ArtifactError("load: the checksum is wrong: the file is damaged.")
    return data[start + 1 : -_SUM_BYTES]
