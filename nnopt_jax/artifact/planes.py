"""Streams as planes of weights: chooses how lines lie, and writes the choice before the code."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nnopt_jax.artifact.arithmetic import Decoder, Encoder
from nnopt_jax.artifact.lags import find
from nnopt_jax.artifact.lines import Layout, walk
from nnopt_jax.artifact.wire import Reader, varint
from nnopt_jax.errors import ArtifactError

_COMMON = 0.25
"""A symbol of at least this share is coded as a hole."""
_MOST_LINES = 4096
_LEAST_WIDTH = 16
_LEAST_ROW = 8
_HOLES, _TURNED, _ZERO, _LAGS = 1, 2, 4, 8
"""Flags: there are holes; lines lie along the leading axes; holes are symbol 0; number of lags."""

Sides = tuple[np.ndarray | None, np.ndarray | None]
"""Classes `0 .. 63` of the rows of an array and of its columns, each where there are any."""


def decisions(symbols: np.ndarray, alphabet: int) -> int:
    """Estimates how many bits `encode` would code one by one."""
    levels = 1 + (alphabet - 1).bit_length()
    holes = int(np.bincount(symbols).max())
    if holes < _COMMON * symbols.size:
        return symbols.size * levels
    return symbols.size + (symbols.size - holes) * levels


def encode(plane: np.ndarray, alphabet: int, center: int, sides: Sides) -> bytes:
    """Codes a weight-shaped array of symbols with what neighbors say.

    Args:
        plane: symbols of any shape; the last axis lies along lines.
        alphabet: symbols lie below it.
        center: symbols below it count as negative.
        sides: classes of rows and columns, which the reader has too.

    Returns:
        Settings and code.
    """
    counts = np.bincount(plane.ravel(), minlength=alphabet)
    hole = int(counts.argmax())
    holes = alphabet == 2 or bool(counts[hole] >= _COMMON * plane.size)
    symbols = _dig(plane.astype(np.int64), hole) if holes else plane.astype(np.int64)
    settings = Settings(
        shape=plane.shape,
        alphabet=alphabet,
        hole=hole if holes else None,
        center=0 if alphabet == 2 else int(center - (holes and hole < center)),
        prior=_prior(plane.size - int(counts[hole]), int(counts[hole])),
    ).fitted(symbols)
    coder = Encoder()
    walk(coder, settings.layout, settings.aligned(sides), settings.lines(symbols).ravel())
    return settings.write() + coder.finish()


def decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, sides: Sides, most: int
) -> np.ndarray:
    """Reads what `encode` wrote.

    Args:
        data: the bytes, whole.
        shape: of the array.
        alphabet: as it was given to `encode`.
        sides: as they were given to `encode`.
        most: bits to read at most; more of them cannot be what an encoder wrote.

    Returns:
        The symbols, flat, int64; not checked against the alphabet.

    Raises:
        ArtifactError: the data are malformed.
    """
    reader = Reader(data)
    settings = Settings.read(reader, shape, alphabet)
    if settings.layout.size > most:
        raise ArtifactError(f"malformed: {settings.layout.size} symbols one by one.")
    coder = Decoder(reader.rest(), most)
    symbols = settings.unlines(walk(coder, settings.layout, settings.aligned(sides), None))
    coder.finish()
    return symbols if settings.hole is None else _fill(symbols, settings.hole)


def _dig(symbols: np.ndarray, hole: int) -> np.ndarray:
    """Moves one symbol to 0, and those below it up by one."""
    return np.where(symbols == hole, 0, symbols + (symbols < hole))


def _fill(symbols: np.ndarray, hole: int) -> np.ndarray:
    """Undoes `_dig`."""
    return np.where(symbols == 0, hole, symbols - (symbols <= hole))


def _prior(there: int, holes: int) -> int:
    """Log-odds in steps of an eighth of a doubling, as one byte."""
    odds = math.log2(max(there, 1) / max(holes, 1))
    return min(max(round(8 * odds) + 128, 0), 255)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written before the code.

    Args:
        shape: of the array.
        alphabet: of its symbols.
        hole: the symbol coded as "nothing here", if there is one.
        center: codes below it count as negative.
        prior: log-odds that something is there, in eighths of a doubling, 128 for even.
        turned: whether lines run along the leading axes instead of the last.
        lags: distances of lines that resemble each other.
    """

    shape: tuple[int, ...]
    alphabet: int
    hole: int | None
    center: int
    prior: int
    turned: bool = False
    lags: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Symbols in a line: whole rows, so many that the lines are not too many."""
        size = math.prod(self.shape)
        if len(self.shape) < 2 or not size:
            return max(_LEAST_WIDTH, -(-size // (_MOST_LINES // 2)))
        row = size // self.shape[-1] if self.turned else self.shape[-1]
        return row * max(-(-_LEAST_ROW // row), -(-size // (row * _MOST_LINES)))

    @property
    def layout(self) -> Layout:
        """The lines that `walk` sees."""
        codes = self.alphabet - (self.hole is not None)
        return Layout(
            size=math.prod(self.shape),
            width=self.width,
            codes=codes,
            holes=self.hole is not None,
            center=self.center,
            prior=(self.prior - 128) * 32,
            lags=self.lags,
        )

    def lines(self, symbols: np.ndarray) -> np.ndarray:
        """The symbols in the order of the lines, `(lines of the matrix, width of the matrix)`."""
        matrix = symbols.reshape(-1, symbols.shape[-1]) if symbols.ndim > 1 else symbols[None]
        return matrix.T if self.turned else matrix

    def unlines(self, symbols: np.ndarray) -> np.ndarray:
        """Undoes `lines`, flat."""
        return symbols.reshape(self.shape[-1], -1).T.ravel() if self.turned else symbols

    def aligned(self, sides: Sides) -> list[np.ndarray]:
        """Classes of rows and columns as those of lines and places, where these are the same."""
        rows, columns = sides if len(self.shape) > 1 else (None, None)
        if self.turned:
            rows, columns = columns, rows
        size = self.width
        across = [] if columns is None or len(columns) != size else [columns[None]]
        down = [] if rows is None or len(rows) * size != math.prod(self.shape) else [rows[:, None]]
        return down + across

    def fitted(self, symbols: np.ndarray) -> Settings:
        """Chooses the direction of the lines, and the lags."""
        there = symbols > 0 if self.hole is not None else np.ones(symbols.shape, bool)
        if symbols.ndim < 2 or not there.any():
            return self
        middle = symbols[there].mean()
        signs = np.where(there, np.where(symbols > middle, 1.0, -1.0), 0.0)
        signs -= there * signs[there].mean()
        found = []
        for turned in (False, True):
            ways = dataclasses.replace(self, turned=turned)
            sure, lags = find(*(ways._even(ways.lines(x)) for x in (there, signs)))
            found.append((sure if lags else 0.0, dataclasses.replace(ways, lags=lags)))
        return found[found[1][0] > found[0][0]][1]

    def _even(self, matrix: np.ndarray) -> np.ndarray:
        """Cuts a matrix into lines, without the last one where it is short."""
        flat = matrix.ravel()
        return flat[: flat.size // self.width * self.width].reshape(-1, self.width)

    def write(self) -> bytes:
        """One byte of flags, and what they announce."""
        flags = _TURNED * self.turned + _LAGS * len(self.lags)
        out = b""
        if self.hole is not None:
            flags += _HOLES + _ZERO * (self.hole == 0)
            out += (varint(self.hole) if self.hole else b"") + bytes([self.prior])
        out += varint(self.center) + b"".join(varint(lag) for lag in self.lags)
        return bytes([flags]) + out

    @classmethod
    def read(cls, reader: Reader, shape: tuple[int, ...], alphabet: int) -> Settings:
        """Undoes `write`, and refuses settings that cannot be."""
        flags = reader.byte()
        hole, prior = None, 128
        if flags & _HOLES:
            hole = 0 if flags & _ZERO else reader.varint(alphabet - 1)
            prior = reader.byte()
        center = reader.varint(alphabet)
        lags = tuple(reader.varint(_MOST_LINES) for _ in range(flags // _LAGS))
        settings = cls(shape, alphabet, hole, center, prior, bool(flags & _TURNED), lags)
        deep = lags and (min(lags) < 1 or max(lags) >= settings.layout.lines)
        if len(lags) > 2 or deep or (settings.turned and len(shape) < 2):
            raise ArtifactError("malformed: settings of a stream that cannot be.")
        return settings
