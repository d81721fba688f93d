"""Byte-level input and output: variable-length integers, and a binary arithmetic coder."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from nnopt_jax.errors import ArtifactError

_MAX_VARINT = 9
"""The bytes of the longest varint, of 63 bits, which is enough for any count in a file."""

ODDS_BITS = 16
"""Odds are integers `1 .. 2^16 - 1`: the probability of a one, in units of 2^-16."""
# The interval of the arithmetic coder has 48 bits and is renormalized by 16 bits, so that odds of
# 16 bits lose nothing that can be measured.
_TOP = 1 << 48
_LOW = 1 << 32


def varint(value: int) -> bytes:
    """Encode a non-negative integer in 7-bit groups, the lowest first.

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
    """Join parts, each preceded by its length, except the last.

    Example:
        >>> framed([b"ab", b"c"]).hex()
        '02616263'
    """
    return b"".join(varint(len(part)) + part for part in parts[:-1]) + b"".join(parts[-1:])


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """Turn the errors that malformed input causes into an `ArtifactError`.

    Args:
        what: the name of the input, for the error.
    """
    try:
        yield
    except ArtifactError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
            RecursionError) as error:  # fmt: skip
        raise ArtifactError(f"load: malformed {what} ({error!r}).") from error


class ByteReader:
    """A cursor over untrusted bytes; missing bytes raise an `ArtifactError`.

    Args:
        data: the bytes.

    Example:
        >>> reader = ByteReader(bytes([0xAC, 2]) + b"xyz")
        >>> reader.varint(), reader.take(2), reader.rest()
        (300, b'xy', b'z')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        left = len(self._data) - self._at
        if count > left:
            raise ArtifactError(f"truncated: {count} bytes wanted at {self._at}, {left} left.")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def varint(self, most: int | None = None) -> int:
        """Read an integer that `varint` wrote; raise if it is above `most`."""
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
        """Read one part that `framed` wrote with its length."""
        return self.take(self.varint())

    def parts(self, count: int) -> list[bytes]:
        """Read all parts that `framed` wrote, up to the end of the data."""
        parts = [self.part() if left else self.rest() for left in range(count - 1, -1, -1)]
        self.end()
        return parts

    def rest(self) -> bytes:
        """Read all remaining bytes."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Raise if there are bytes left."""
        if left := len(self._data) - self._at:
            raise ArtifactError(f"malformed: {left} bytes too many.")


def inflate(
    data: bytes, most: int, what: str, *, wbits: int = 15, dictionary: bytes = b""
) -> tuple[bytes, bytes]:
    """Decompress a zlib stream, up to a greatest size.

    Args:
        data: compressed, untrusted bytes.
        most: the greatest number of decompressed bytes.
        what: the name of the content, for errors.
        wbits: zlib's window bits; -15 for data without header and checksum.
        dictionary: zlib's preset dictionary.

    Returns:
        The content, and the bytes that follow the compressed ones.

    Raises:
        ArtifactError: the data are malformed, or inflate to more.
    """
    unpacker = zlib.decompressobj(wbits, dictionary)
    try:
        content = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise ArtifactError(f"malformed {what} ({error}).") from error
    if not unpacker.eof or len(content) > most:
        raise ArtifactError(f"malformed {what}: it does not end in {len(content)} bytes.")
    return content, unpacker.unused_data


class Encoder:
    """A binary arithmetic encoder; a one of probability `2^-16 p` costs `16 - log2(p)` bits.

    Example:
        >>> odds = np.full(1000, 650)
        >>> writer = Encoder()
        >>> _ = writer.code(odds, np.zeros(1000, np.int64))
        >>> data = writer.finish()
        >>> len(data), Decoder(data).code(odds).sum()
        (2, np.int64(0))
    """

    def __init__(self) -> None:
        self._low, self._span, self._out = 0, _TOP, bytearray()

    def code(self, odds: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Encode bits with the given odds of a one for each, and return the bits."""
        assert bits is not None
        low, span = self._low, self._span
        for chance, bit in zip(odds.tolist(), bits.tolist(), strict=True):
            bound = (span >> ODDS_BITS) * chance
            if bit:
                span = bound
            else:
                low += bound
                span -= bound
            if span < _LOW:
                low, span = self._shift(low), span << 16
        self._low, self._span = low, span
        return bits

    def _shift(self, low: int) -> int:
        """Write the top 16 bits of `low`, and propagate the carry above them."""
        word = low >> 32
        if word >> 16:  # the carry propagates through all trailing bytes of 255
            at = len(self._out) - 1
            while self._out[at] == 255:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1
        self._out += (word & 0xFFFF).to_bytes(2, "big")
        return (low & 0xFFFFFFFF) << 16

    def finish(self) -> bytes:
        """Return the shortest code, since the decoder reads missing bytes as zeros."""
        low, high = self._low, self._low + self._span - 1
        drop = next(bits for bits in range(48, -1, -1) if high >> bits << bits >= low)
        low = high >> drop << drop
        for _ in range(3):
            low = self._shift(low)
        return bytes(self._out).rstrip(b"\0")


class Decoder:
    """The decoder for `Encoder`, which needs the same odds in the same order.

    Args:
        data: exactly the bytes of `Encoder.finish`.
        most: the number of bits that may be read, so that a malformed stream cannot take forever.

    Example:
        >>> writer = Encoder()
        >>> _ = writer.code(np.array([100, 60000]), np.array([1, 0]))
        >>> Decoder(writer.finish()).code(np.array([100, 60000]))
        array([1, 0])
    """

    def __init__(self, data: bytes, most: int = 1 << 24) -> None:
        self._words = np.frombuffer(data + bytes(len(data) % 2), ">u2").tolist()
        self._code, self._span, self._at = int.from_bytes(data[:6].ljust(6, b"\0"), "big"), _TOP, 3
        self._left = most

    def code(self, odds: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
        """Decode one bit for each of the odds.

        Raises:
            ArtifactError: more than `most` bits would be read.
        """
        self._left -= len(odds)
        if self._left < 0:
            raise ArtifactError("malformed: a stream wants more bits than any encoder writes.")
        code, span, words, at = self._code, self._span, self._words, self._at
        out = []
        for chance in odds.tolist():
            bound = (span >> ODDS_BITS) * chance
            if code < bound:
                span = bound
                out.append(1)
            else:
                code -= bound
                span -= bound
                out.append(0)
            if span < _LOW:
                span <<= 16
                code = code << 16 | (words[at] if at < len(words) else 0)
                at += 1
        self._code, self._span, self._at = code, span, at
        return np.array(out, np.int64)

    def finish(self) -> None:
        """Raise if bytes remain that no bit needed.

        Raises:
            ArtifactError: there is data left.
        """
        if self._at < len(self._words):
            raise ArtifactError("malformed: an arithmetic code is longer than its symbols.")
