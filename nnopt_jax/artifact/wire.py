"""Bytes in, bytes out: variable-length integers and bounded reads."""

from __future__ import annotations

from collections.abc import Sequence

from nnopt_jax.errors import ArtifactError

_MAX_VARINT = 9
"""Bytes of the longest integer: 63 bits, more than any count in a file."""


def varint(value: int) -> bytes:
    """Writes a non-negative integer in 7-bit groups, the lowest first.

    Args:
        value: an integer of at most 63 bits.

    Returns:
        1 to 9 bytes.

    Example:
        >>> varint(5).hex(), varint(300).hex()
        ('05', 'ac02')
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def framed(parts: Sequence[bytes]) -> bytes:
    """Joins parts, each but the last behind its length.

    Example:
        >>> framed([b"ab", b"c"]).hex()
        '02616263'
    """
    lengths = [varint(len(part)) for part in parts[:-1]] + [b""]
    return b"".join(length + part for length, part in zip(lengths, parts, strict=bool(parts)))


class Reader:
    """Reads a run of bytes from front to back; any lack is an `ArtifactError`.

    Args:
        data: the bytes.

    Example:
        >>> reader = Reader(bytes([0xAC, 2]) + b"xyz")
        >>> reader.varint(), reader.take(2), reader.rest()
        (300, b'xy', b'z')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Reads exactly `count` bytes."""
        if count > len(self._data) - self._at:
            left = len(self._data) - self._at
            raise ArtifactError(f"truncated: {count} bytes wanted at {self._at}, {left} left.")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """Reads one byte."""
        return self.take(1)[0]

    def varint(self, most: int | None = None) -> int:
        """Reads an integer that `varint` wrote, and refuses one above `most`."""
        value = 0
        for place in range(_MAX_VARINT):
            byte = self.byte()
            value |= (byte & 127) << 7 * place
            if byte < 128:
                if most is not None and value > most:
                    raise ArtifactError(f"malformed: {value} where at most {most} can stand.")
                return value
        raise ArtifactError(f"malformed: an integer of over {_MAX_VARINT} bytes.")

    def part(self) -> bytes:
        """Reads one part that `framed` wrote behind its length."""
        return self.take(self.varint())

    def rest(self) -> bytes:
        """Reads all that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Refuses bytes that nothing has read."""
        if left := len(self._data) - self._at:
            raise ArtifactError(f"malformed: {left} bytes too many.")
