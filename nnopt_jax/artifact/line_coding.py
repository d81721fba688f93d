"""Coding of weight-shaped arrays by the context model: direction, lags and side information.

Lines of a weight resemble lines at some distance (neighboring pixels, neighboring kernels). Arrays
resemble each other, too: outputs that have few weights in one layer often have few in the next
layer.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from nnopt_jax.artifact.byte_io import ByteReader, Decoder, Encoder, varint
from nnopt_jax.artifact.context import MOST_LINES, ContextModel, LineLayout, density_class
from nnopt_jax.errors import ArtifactError

COMMON = 0.25
"""A symbol of at least this fraction is coded as a hole (an absent value)."""
_HOLES, _TURNED, _ZERO, _LAGS = 1, 2, 4, 8
"""Flags for holes, lines along the leading axes and holes of symbol 0; unit of the lag count."""
_FARTHEST = 512
"""The largest lag."""
_SURE_LAG, _SURE_PROFILE = 6.0, 4.0
"""The significance, in standard deviations, that lags and profiles need to be used."""
_RADIUS = 4

Sides = tuple[np.ndarray | None, np.ndarray | None]
"""Classes `0 .. 63` of the rows and of the columns of an array; each may be None."""


def decisions(counts: np.ndarray, alphabet: int) -> int:
    """Estimate the number of bits that `encode` would code one by one.

    Args:
        counts: how often each symbol occurs.
        alphabet: the number of symbols.
    """
    levels = 1 + (alphabet - 1).bit_length()
    size, holes = int(counts.sum()), int(counts.max())
    return size + (size - holes) * levels if holes >= COMMON * size else size * levels


@dataclasses.dataclass(frozen=True)
class FittedLines:
    """An array of symbols in the layout that promises the best compression.

    Args:
        layout: the direction and the lags of the lines.
        symbols: the symbols in the shape of the array, with the hole moved to 0.
        significance: of the first lag, in standard deviations.
    """

    layout: LineLayout
    symbols: np.ndarray
    significance: float

    @property
    def gain(self) -> float:
        """The bits that the resemblance of lines saves, if each is coded after the others.

        A correlation `r` of `n` pairs has significance `s = r sqrt(n)` in standard deviations, and
        knowing one of each pair saves about `-n log2(1 - r^2) / 2`, so `s^2 / (2 ln 2)` bits.
        """
        return self.significance**2 / (2 * math.log(2)) if self.layout.lags else 0.0


def fit(array: np.ndarray, counts: np.ndarray, alphabet: int, center: int) -> FittedLines:
    """Choose the layout of an array: its hole, the direction of its lines, and its lags.

    Args:
        array: symbols of any shape; lines run along the last axis or along the leading ones.
        counts: how often each symbol occurs.
        alphabet: the number of symbols.
        center: the first symbol that counts as non-negative.
    """
    hole = int(counts.argmax())
    holes = alphabet == 2 or bool(counts[hole] >= COMMON * array.size)
    symbols = array.astype(np.int64)
    if holes:  # move the hole to 0, and the symbols below it up by one
        symbols = np.where(symbols == hole, 0, symbols + (symbols < hole))
    odds = math.log2(max(array.size - int(counts[hole]), 1) / max(int(counts[hole]), 1))
    layout = LineLayout(
        shape=array.shape,
        alphabet=alphabet,
        hole=hole if holes else None,
        center=0 if alphabet == 2 else int(center - (holes and hole < center)),
        prior=min(max(round(8 * odds) + 128, 0), 255),
    )
    layout, significance = _fit_layout(layout, symbols)
    return FittedLines(layout, symbols, significance)


def encode(lines: FittedLines, sides: Sides) -> bytes:
    """Encode a weight-shaped array of symbols with the context model.

    Args:
        lines: the array, see `fit`.
        sides: classes of rows and columns, which the decoder has, too.

    Returns:
        The layout and the code.
    """
    layout, coder = lines.layout, Encoder()
    model = ContextModel(coder, layout, _align_sides(layout, sides))
    model.walk(_matrix(lines.symbols, layout).ravel())
    return _write_layout(layout) + coder.finish()


def decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, sides: Sides, most: int
) -> np.ndarray:
    """Decode an array of symbols that `encode` wrote.

    Args:
        data: all bytes.
        shape: shape of the array.
        alphabet: as given to `encode`.
        sides: as given to `encode`.
        most: the greatest number of bits to read, which no encoder exceeds.

    Returns:
        The symbols, flat, int64; not checked against the alphabet.

    Raises:
        ArtifactError: the data is malformed.
    """
    reader = ByteReader(data)
    layout = _read_layout(reader, shape, alphabet)
    if layout.size > most:
        raise ArtifactError(f"malformed: {layout.size} symbols one by one.")
    coder = Decoder(reader.rest(), most)
    symbols = ContextModel(coder, layout, _align_sides(layout, sides)).walk(None)
    coder.finish()
    if layout.turned:
        symbols = symbols.reshape(shape[-1], -1).T.ravel()
    if layout.hole is None:
        return symbols
    return np.where(symbols == 0, layout.hole, symbols - (symbols <= layout.hole))


def _write_layout(layout: LineLayout) -> bytes:
    """Write a layout: one byte of flags, and the values that they announce."""
    flags, out = _TURNED * layout.turned + _LAGS * len(layout.lags), b""
    if layout.hole is not None:
        flags += _HOLES + _ZERO * (layout.hole == 0)
        out = (varint(layout.hole) if layout.hole else b"") + bytes([layout.prior])
    return bytes([flags]) + out + b"".join(map(varint, (layout.center, *layout.lags)))


def _read_layout(reader: ByteReader, shape: tuple[int, ...], alphabet: int) -> LineLayout:
    """Read a layout that `_write_layout` wrote; raise if it is impossible."""
    flags = reader.byte()
    hole, prior = None, 128
    if flags & _HOLES:
        hole = 0 if flags & _ZERO else reader.varint(alphabet - 1)
        prior = reader.byte()
    center = reader.varint(alphabet)
    lags = tuple(reader.varint(MOST_LINES) for _ in range(flags // _LAGS))
    layout = LineLayout(shape, alphabet, hole, center, prior, bool(flags & _TURNED), lags)
    deep = lags and (min(lags) < 1 or max(lags) >= layout.lines)
    if len(lags) > 2 or deep or (layout.turned and len(shape) < 2):
        raise ArtifactError("malformed: an impossible layout of lines.")
    return layout


def _matrix(symbols: np.ndarray, layout: LineLayout) -> np.ndarray:
    """Return the symbols in the order of the lines."""
    matrix = symbols.reshape(-1, symbols.shape[-1]) if symbols.ndim > 1 else symbols[None]
    return matrix.T if layout.turned else matrix


def _align_sides(layout: LineLayout, sides: Sides) -> list[np.ndarray]:
    """Return the side information of lines and of positions in a line, where sizes agree."""
    rows, columns = sides if len(layout.shape) > 1 else (None, None)
    if layout.turned:
        rows, columns = columns, rows
    width = layout.width
    across = [] if columns is None or len(columns) != width else [columns[None]]
    down = [] if rows is None or len(rows) * width != layout.size else [rows[:, None]]
    return down + across


# ---------------------------------------------------------------------- lags


def _fit_layout(layout: LineLayout, symbols: np.ndarray) -> tuple[LineLayout, float]:
    """Choose the direction and the lags of highest significance; return both."""
    there = symbols > 0 if layout.hole is not None else np.ones(symbols.shape, bool)
    if symbols.ndim < 2 or not there.any():
        return layout, 0.0
    signs = np.where(there, np.where(symbols > symbols[there].mean(), 1.0, -1.0), 0.0)
    signs -= there * signs[there].mean()
    found = []
    for turned in (False, True):
        turn = dataclasses.replace(layout, turned=turned)
        whole = layout.size // turn.width * turn.width  # the last line may be shorter
        there_flat, signs_flat = (_matrix(x, turn).ravel()[:whole] for x in (there, signs))
        shape = (-1, turn.width)
        sure, lags = find_lags(there_flat.reshape(shape), signs_flat.reshape(shape))
        found.append((sure if lags else 0.0, dataclasses.replace(turn, lags=lags)))
    sure, best = found[found[1][0] > found[0][0]]
    return best, sure


def find_lags(there: np.ndarray, signs: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Find the distances at which lines have more in common than by chance.

    For a dense layer on images of 28 by 28 pixels, the distances are 1 and 28; for a convolution,
    the number of input channels, and that number times the width of the kernel.

    Args:
        there: bool, `(lines, width)`, True where a symbol is present.
        signs: `(lines, width)`, -1, 0 or 1.

    Returns:
        The significance of the first distance in standard deviations; and up to two distances.

    Example:
        >>> draws = np.random.default_rng(0).random((100, 40)) < 0.1
        >>> find_lags(draws | np.roll(draws, 7, axis=0), np.zeros((100, 40)))[1]
        (7,)
    """
    farthest = min(len(there) // 3, _FARTHEST)
    if not farthest or not there.size:
        return 0.0, ()
    both = _autocorrelation(there.astype(float), farthest)
    by_line = _autocorrelation(there.sum(1, keepdims=True).astype(float), farthest)
    chance = by_line * (there.sum(0) ** 2.0).sum() / max(there.sum() ** 2.0, 1.0)
    excess = (both - chance) / np.sqrt(chance + 1)
    agreement = _autocorrelation(signs.astype(float), farthest) / np.sqrt(both + 1)
    score = excess.clip(0) + agreement.clip(0)
    score[0] = 0
    first = int(score.argmax())
    sure = float(score[first])
    if sure < _SURE_LAG:
        return sure, ()
    for multiple in range(1, _RADIUS):  # the first distance already explains its multiples
        blur = min(3, first // 4)
        score[max(multiple * first - blur, 0) : multiple * first + blur + 1] = 0
    second = int(score.argmax())
    return sure, (first, second) if score[second] >= _SURE_LAG else (first,)


def _autocorrelation(columns: np.ndarray, farthest: int) -> np.ndarray:
    """Return `sum(x[i] * x[i - lag])` for lags `0 .. farthest`, over all columns."""
    size = 1 << (len(columns) + farthest).bit_length()
    power = np.zeros(size // 2 + 1)
    for start in range(0, columns.shape[1], 64):
        power += (np.abs(np.fft.rfft(columns[:, start : start + 64], size, axis=0)) ** 2).sum(1)
    return np.fft.irfft(power, size)[: farthest + 1].round(6)


# ---------------------------------------------------------------------- side information


class Profiles:
    """Densities of the outputs of earlier masks, as classes of rows and columns of later ones.

    The rows of a mask are compared with the outputs of an earlier one, repeated if there are
    several rows for each output, as in a convolution (height times width of the kernel). Columns
    are compared with the outputs of a mask of as many outputs.

    Example:
        >>> profiles = Profiles()
        >>> profiles.note(np.eye(8, 4)[None] > 0)
        >>> profiles.classes(2, (2, 4, 6))
        (array([52, 52, 52, 52, 52, 52, 52, 52]), None)
    """

    def __init__(self) -> None:
        self._known: list[_Profile] = []

    def note(self, mask: np.ndarray) -> None:
        """Add a mask; encoder and decoder add the same masks in the same order."""
        self._known.append(_Profile(_rows_by_outputs(mask)))

    def best(self, mask: np.ndarray) -> int:
        """Return the earlier masks that correlate best with rows and columns, as one number.

        Args:
            mask: `(..., outputs)`.

        Returns:
            The number to pass to `classes`; 0 if no mask correlates.
        """
        if mask.ndim < 2 or not self._known:
            return 0
        counts = [_rows_by_outputs(mask).sum(axis) for axis in (1, 0)]
        most, best = [_SURE_PROFILE] * 2, [0, 0]
        for back in range(1, len(self._known) + 1):
            for axis, classes in enumerate(self._sides(back, mask.shape)):
                if classes is None or not np.ptp(classes) or not np.ptp(counts[axis]):
                    continue
                correlation = abs(np.corrcoef(classes, counts[axis])[0, 1])
                sure = correlation * math.sqrt(len(classes))
                if sure > most[axis]:
                    most[axis], best[axis] = sure, back
        return best[0] * (len(self._known) + 1) + best[1]

    def classes(self, number: int, shape: tuple[int, ...]) -> Sides:
        """Return the classes of rows and columns of an array, given a number from `best`.

        Raises:
            ArtifactError: the number refers to a mask that does not exist.
        """
        if number >= (len(self._known) + 1) ** 2:
            raise ArtifactError("malformed: a stream refers to one that is not before it.")
        rows, columns = divmod(number, len(self._known) + 1)
        return self._sides(rows, shape)[0], self._sides(columns, shape)[1]

    def _sides(self, back: int, shape: tuple[int, ...]) -> Sides:
        if not back or len(shape) < 2 or not math.prod(shape):
            return None, None
        profile, rows = self._known[-back], math.prod(shape[:-1])
        fits = profile.size > 1 and rows % profile.size == 0
        return (
            np.tile(profile.classes, rows // profile.size) if fits else None,
            profile.classes if profile.size == shape[-1] else None,
        )


class _Profile:
    """The densities of the columns of a mask, computed when a later mask may follow them."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.size, self._rows = matrix.shape[1], max(len(matrix), 1)
        # One row, as of a leaf of one axis, may be long; it takes less memory than its sums.
        self._totals = matrix[0] if len(matrix) == 1 else matrix.sum(0)

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """The class of each density."""
        return density_class(16 * self._totals.astype(np.int64) + 4, 16 * self._rows)


def _rows_by_outputs(mask: np.ndarray) -> np.ndarray:
    """Return the mask as a matrix `(rows, outputs)`; a vector is one row."""
    if not mask.size:
        return np.zeros((0, 0), bool)
    return mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
