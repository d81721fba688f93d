"""Which lines of a weight resemble each other: pixels beside pixels, kernels beside kernels."""

from __future__ import annotations

import numpy as np

_FARTHEST = 512
_SURE = 6.0
"""How many standard deviations of chance a resemblance must exceed."""
_RADIUS = 4
_CLOSE = 2
_NEAREST = 4


def find(there: np.ndarray, signs: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Finds the distances at which lines have more in common than chance would give them.

    For an image of 28 by 28 pixels before a dense layer these are 1 and 28; for a convolution, the
    input channels and the width of the kernel times as many.

    Args:
        there: bool, `(lines, width)`: which symbols are there.
        signs: `(lines, width)` of -1, 0 and 1.

    Returns:
        How sure the first distance is, in standard deviations; and none, one or two distances.

    Example:
        >>> draws = np.random.default_rng(0).random((100, 40)) < 0.1
        >>> find(draws | np.roll(draws, 7, axis=0), np.zeros((100, 40)))[1]
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
    if sure < _SURE:
        return sure, ()
    for multiple in range(1, _RADIUS):  # what the first distance explains already
        blur = min(3, first // 4)
        score[max(multiple * first - blur, 0) : multiple * first + blur + 1] = 0
    second = int(score.argmax())
    return sure, (first, second) if score[second] >= _SURE else (first,)


def _autocorrelation(columns: np.ndarray, farthest: int) -> np.ndarray:
    """`sum(x[i] * x[i - lag])` for lags `0 .. farthest`, over all columns."""
    size = 1 << (len(columns) + farthest).bit_length()
    power = np.zeros(size // 2 + 1)
    for start in range(0, columns.shape[1], 64):
        power += (np.abs(np.fft.rfft(columns[:, start : start + 64], size, axis=0)) ** 2).sum(1)
    return np.fft.irfft(power, size)[: farthest + 1].round(6)


def disc(lags: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in lines around the place at hand, and weights that fall with distance.

    Returns:
        Distances `(n,)`, and weights `(2, n)`: by distance, and by its square over a smaller disc.

    Example:
        >>> distances, weights = disc((1, 28))
        >>> distances[:4], weights[:, :4]
        (array([1, 2, 3, 4]), array([[16,  8,  5,  4],
               [16,  4,  0,  0]]))
    """
    first, second = (*lags, 0)[:2]
    nearest: dict[int, int] = {}
    span = range(-_RADIUS, _RADIUS + 1)
    for across, down in ((a, d) for a in span for d in span if second or not d):
        lag, square = across * first + down * second, across**2 + down**2
        if lag > 0 and square <= _RADIUS**2 + 1:
            nearest[lag] = min(nearest.get(lag, square), square)
    distances = np.array(sorted(nearest))
    squares = np.array([nearest[lag] for lag in distances])
    wide = np.rint(16 / np.sqrt(squares)).astype(np.int64)
    close = np.where(squares <= _CLOSE**2 + 1, 16 // squares, 0)
    return distances, np.stack([wide, close])


class Past:
    """The lines above, as far as they matter.

    Args:
        lags: one or two distances.
        lines: number of lines.
        width: symbols in a line.
    """

    def __init__(self, lags: tuple[int, ...], lines: int, width: int) -> None:
        distances, weights = disc(lags)
        inside = distances < max(lines, 2)
        self._lags, self._weights = distances[inside], weights[:, inside]
        self._far = int(self._lags.max())
        order = np.argsort(-self._weights[0], kind="stable")
        self._close = self._lags[order[:_NEAREST]]
        self._fields = np.zeros((3, self._far + lines, width), np.int32)

    def push(self, line: int, fields: np.ndarray) -> None:
        """Notes a line: what is there, its signs, its sizes; `(3, width)`."""
        self._fields[:, self._far + line] = fields

    def sums(self, line: int) -> np.ndarray:
        """Weighted sums of the fields over the wide disc and the close one, `(3, 2, width)`."""
        return np.matmul(self._weights, self._fields[:, self._far + line - self._lags])

    def pattern(self, line: int) -> np.ndarray:
        """Which of the nearest places are taken, as one of 16 classes."""
        taken = self._fields[0, self._far + line - self._close]
        return (taken << np.arange(len(self._close))[:, None]).sum(0)

    def reach(self, line: int) -> int:
        """The sum of all weights of the disc that lie within the array."""
        return int(self._weights[0, self._lags <= line].sum())
