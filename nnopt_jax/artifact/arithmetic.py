"""Binary arithmetic coding: bits and the odds they were given, to bytes and back."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nnopt_jax.errors import ArtifactError

ODDS_BITS = 16
"""Odds are integers `1 .. 2^16 - 1`: the chance of a one, in units of 2^-16."""

_TOP = 1 << 48
_LOW = 1 << 32


class Coder(Protocol):
    """What a model talks to, so that one walk over the data both writes and reads."""

    def code(self, odds: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Writes the bits, or reads them where they are None; returns them either way."""
        ...


class Encoder:
    """Writes bits; a one whose odds were `p` costs `16 - log2(p)` bits.

    The interval is kept in 48 bits and renormalized by 16, so that odds of 16 bits lose nothing
    that can be measured.

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
        """Writes bits of 0 and 1, each with the odds that it is a 1."""
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
        """Hands over the top 16 bits of `low`, and the carry above them."""
        word = low >> 32
        if word >> 16:  # runs through the bytes that are all ones
            at = len(self._out) - 1
            while self._out[at] == 255:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1
        self._out += (word & 0xFFFF).to_bytes(2, "big")
        return (low & 0xFFFFFFFF) << 16

    def finish(self) -> bytes:
        """Ends with the fewest bytes: the reader takes what is missing for zeros."""
        low, high = self._low, self._low + self._span - 1
        drop = next(bits for bits in range(48, -1, -1) if high >> bits << bits >= low)
        low = high >> drop << drop
        for _ in range(3):
            low = self._shift(low)
        return bytes(self._out).rstrip(b"\0")


class Decoder:
    """Reads what `Encoder` wrote, given the same odds in the same order.

    Args:
        data: the bytes of `Encoder.finish`, whole.
        most: how many bits may be read, so that a malformed stream cannot take forever.

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
        """Reads one bit for each of the odds.

        Raises:
            ArtifactError: more bits are asked for than may be.
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
        """Refuses data that no bit has needed.

        Raises:
            ArtifactError: there is more of it.
        """
        if self._at < len(self._words):
            raise ArtifactError("malformed: an arithmetic code is longer than its symbols.")
