"""The context model: adaptive odds for each bit of a matrix of symbols, given its neighbors.

Symbols lie in lines, like the rows of a weight matrix. A line is coded after the lines above it, so
that contexts are computed for whole runs of symbols at once. The bits of a symbol say whether it is
present, on which side of the center it lies, and how far from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact.byte_io import ODDS_BITS, Decoder, Encoder

# The least numbers of batches, about, of presence bits and codes. Small batches adapt faster, but
# each batch costs time.
_BATCHES, _CODE_BATCHES, _LEAST_BATCH = 2048, 512, 32
_LEVELS = 8
"""The number of leading bits of a magnitude whose context is the bits above them."""
MOST_LINES = 4096
_LEAST_WIDTH, _LEAST_ROW = 16, 8

_ONE = 64
"""The amount that one observation adds to a count."""
_PRIOR = 2 * _ONE
"""The initial count of a context, unless ones or zeros are rare."""
_MOST = 1 << 20
"""A bound on counts; both counts of a context are halved before they reach it."""
_STRETCH = 256
"""Units of log-odds in one doubling of the odds."""
_RATE = 15
"""The learning rate of weights, 2^-15 in fixed point, which falls with every misprediction."""
_STEP = 1 << 13
"""The greatest change of a weight after one batch: an eighth."""

_RADIUS, _CLOSE, _NEAREST = 4, 2, 4
"""The radii of the wide and the close disc of the lag predictor, and the size of its pattern."""

Coder = Encoder | Decoder
"""An encoder or a decoder: one code path serves both, because both return the bits."""


@dataclasses.dataclass(frozen=True)
class LineLayout:
    """The arrangement of an array of symbols in lines, and the meaning of the symbols.

    Args:
        shape: shape of the array.
        alphabet: number of symbols.
        hole: the symbol that marks an absent value, if there is one; moved to 0 before coding.
        center: the first code that counts as non-negative.
        prior: log-odds that a symbol is present, in eighths of a doubling; 128 for even odds.
        turned: whether lines run along the leading axes instead of the last.
        lags: up to two distances, in lines, at which weights resemble each other.
    """

    shape: tuple[int, ...]
    alphabet: int
    hole: int | None
    center: int
    prior: int
    turned: bool = False
    lags: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of symbols."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """The number of symbols in a line: whole rows, enough to bound the number of lines."""
        if len(self.shape) < 2 or not self.size:
            return max(_LEAST_WIDTH, -(-self.size // (MOST_LINES // 2)))
        row = self.size // self.shape[-1] if self.turned else self.shape[-1]
        return row * max(-(-_LEAST_ROW // row), -(-self.size // (row * MOST_LINES)))

    @property
    def lines(self) -> int:
        """The number of lines, of which the last may be shorter."""
        return -(-self.size // self.width)

    @property
    def levels(self) -> int:
        """The number of bits of a magnitude."""
        codes = self.alphabet - (self.hole is not None)
        return (max(self.center, codes - self.center) - 1).bit_length()


# ---------------------------------------------------------------------- odds, in integers


@functools.cache
def _logarithms() -> np.ndarray:
    """Return `256 log2(n)`, rounded; no value is near a half, so all platforms agree."""
    table = np.zeros(_MOST, np.int16)
    table[1:] = np.rint(_STRETCH * np.log2(np.arange(1, _MOST)))
    return table


@functools.cache
def _squash() -> np.ndarray:
    """Return the odds for log-odds `-4096 .. 4095`, rounded in the same way."""
    chance = 1 / (1 + 2.0 ** (-np.arange(-4096, 4096) / _STRETCH))
    return np.rint(chance * 2**ODDS_BITS).clip(1, 2**ODDS_BITS - 1).astype(np.int64)


def _log2(values: np.ndarray | int) -> np.ndarray:
    """Return the logarithms of integers from 1, in units of 2^-8, capped at that of 2^20."""
    return _logarithms()[np.minimum(values, _MOST - 1)]


def _chance(prior: int) -> int:
    """Return the odds of a one from log-odds, 256 to a doubling."""
    return int(_squash()[min(max(prior, -4096), 4095) + 4096])


def density_class(numerator: np.ndarray | int, denominator: np.ndarray | int) -> np.ndarray:
    """Return a density as one of 64 classes, three to a doubling, from 2^-20 (0) to 1 (60).

    Example:
        >>> density_class(np.array([1, 1, 3]), 8)
        array([51, 51, 56])
    """
    doublings = _log2(numerator).astype(np.int64) - _log2(denominator)
    return np.minimum(np.maximum((3 * doublings + 128 >> 8) + 60, 0), 63)


def _magnitude_class(total: np.ndarray, count: np.ndarray, levels: int, steps: int) -> np.ndarray:
    """Return a mean magnitude as one of 16 classes; 0 if the count is 0."""
    mean = total * steps // np.maximum(count << levels, 1)
    return np.where(count > 0, 1 + np.minimum(mean, 14), 0)


class Mixer:
    r"""Odds for bits, mixed from adaptive counts in integer arithmetic, equal on all platforms.

    $$ \mathrm{odds} = \sigma\Big(b + \sum_i w_i \big(\ln\tfrac{n^1_i}{n^0_i} - b\big)\Big) $$

    Each of `k` models sorts a bit into one of its contexts and counts ones and zeros there; `b` is
    the log-odds before the first bit, and the weights follow the gradient of the code length. Bits
    are coded in batches; the bits of one batch do not influence each other.

    Args:
        sizes: the number of contexts of each model.
        prior: log-odds of a one before the first bit, 256 to a doubling of the odds.

    Example:
        >>> mixer, writer = Mixer([2], prior=0), Encoder()
        >>> contexts = np.array([[0, 1] * 50])
        >>> for _ in range(20):
        ...     _ = mixer.code(writer, contexts, contexts[0])
        >>> len(writer.finish())  # two thousand bits that follow from their context
        13

    References:
        Mahoney 2005, Adaptive weighing of context models for lossless data compression; Wiedemann
        et al. 2020, DeepCABAC, for coding weights by binary decisions with adaptive contexts.
    """

    def __init__(self, sizes: Sequence[int], prior: int = 0) -> None:
        self._start = np.cumsum([0, *sizes[:-1]])[:, None]
        # The counts of zeros for all contexts, then those of ones: a bit y is counted at y * total.
        self._ones = sum(sizes)
        one = _chance(prior)
        zero = (1 << ODDS_BITS) - one
        counts = _PRIOR - (one * _PRIOR >> ODDS_BITS), one * _PRIOR >> ODDS_BITS
        if min(one, zero) * _PRIOR < 1 << ODDS_BITS:
            counts = max(zero // one, 1), max(one // zero, 1)
        self._counts = np.repeat(counts, self._ones)
        self._room = 0
        self._base = prior
        self._weights = np.full(len(sizes), int(2**16 * 1.4 / max(len(sizes), 1.4)))
        self._mistakes = 0
        self._logarithms, self._squash = _logarithms(), _squash()

    def code(self, coder: Coder, contexts: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Code one batch of bits and update the model.

        Args:
            coder: an `Encoder` or a `Decoder`.
            contexts: `(k, n)`, the context of every bit in every model.
            bits: `(n,)` zeros and ones to encode, or None to decode them.

        Returns:
            The bits.
        """
        at = contexts + self._start
        seen = self._logarithms[self._counts[at + self._ones]]
        votes = np.subtract(seen, self._logarithms[self._counts[at]], dtype=np.int64) - self._base
        mixed = (self._weights @ votes >> 16) + (self._base + 4096)
        odds = self._squash[np.minimum(np.maximum(mixed, 0), 8191)]
        bits = coder.code(odds, bits)
        wrong = (bits << ODDS_BITS) - odds
        self._mistakes += int(np.abs(wrong).sum()) >> ODDS_BITS
        rate = _RATE + max(0, self._mistakes.bit_length() - 7) // 2
        self._weights += (votes @ wrong + (1 << rate - 1) >> rate).clip(-_STEP, _STEP)
        self._make_room(_ONE * len(bits))
        np.add.at(self._counts, (at + bits * self._ones).ravel(), _ONE)
        return bits

    def _make_room(self, most: int) -> None:
        """Halve large counts, so that they stay within the table of logarithms."""
        self._room -= most
        if self._room > 0:
            return
        pairs = self._counts.reshape(2, -1)
        large = pairs.max(0) > _MOST // 2
        pairs[:, large] = pairs[:, large] + 1 >> 1
        self._room = _MOST - 1 - int(pairs.max()) - most


# ---------------------------------------------------------------------- contexts


class LagPredictor:
    """Weighted sums over earlier lines that resemble the current line.

    Two lags span a plane (such as the pixels of an image), in which the entries in a disc around
    the current one are summed, weighted by the inverse distance, and those in a smaller disc by its
    square.

    Args:
        lags: one or two distances in lines.
        lines: the number of lines.
        width: symbols in a line.
    """

    def __init__(self, lags: tuple[int, ...], lines: int, width: int) -> None:
        first, second = (*lags, 0)[:2]
        nearest: dict[int, int] = {}
        span = range(-_RADIUS, _RADIUS + 1)
        for across, down in ((a, d) for a in span for d in span if second or not d):
            lag, square = across * first + down * second, across**2 + down**2
            if 0 < lag < max(lines, 2) and square <= _RADIUS**2 + 1:
                nearest[lag] = min(nearest.get(lag, square), square)
        self._lags = np.array(sorted(nearest))
        squares = np.array([nearest[lag] for lag in self._lags.tolist()])
        wide = np.rint(16 / np.sqrt(squares)).astype(np.int64)
        self._weights = np.stack([wide, np.where(squares <= _CLOSE**2 + 1, 16 // squares, 0)])
        self._far = int(self._lags.max())
        self._close = self._lags[np.argsort(-wide, kind="stable")[:_NEAREST]]
        self._fields = np.zeros((3, self._far + lines, width), np.int32)

    def push(self, line: int, fields: np.ndarray) -> None:
        """Store a line's presence, signs and magnitudes, `(3, width)`."""
        self._fields[:, self._far + line] = fields

    def sums(self, line: int) -> np.ndarray:
        """Return the sums of the fields over the wide and the close disc, `(3, 2, width)`."""
        return np.matmul(self._weights, self._fields[:, self._far + line - self._lags])

    def pattern(self, line: int) -> np.ndarray:
        """Return the pattern of nonzero entries nearest to each position, as one of 16 classes."""
        taken = self._fields[0, self._far + line - self._close]
        return (taken << np.arange(len(self._close))[:, None]).sum(0)

    def reach(self, line: int) -> int:
        """Return the sum of the weights of the disc's entries that lie within the array."""
        return int(self._weights[0, self._lags <= line].sum())


class ContextModel:
    """An adaptive model of the lines of an array, with the coder that uses its odds.

    Each symbol has three fields: presence (0 or 1), sign (-1 or 1) and magnitude (from 1).

    Args:
        coder: an `Encoder` or a `Decoder`.
        layout: the layout, which encoder and decoder both know.
        sides: side information that encoder and decoder both have: classes `0 .. 63` of every line,
            `(lines, 1)`, or of every position in a line, `(1, width)`.
    """

    def __init__(self, coder: Coder, layout: LineLayout, sides: Sequence[np.ndarray]) -> None:
        self.coder, self.layout, self.levels = coder, layout, layout.levels
        self.holes, shape = layout.hole is not None, (layout.lines, layout.width)
        self.sides = [np.broadcast_to(side, shape) for side in sides]
        self.lags = LagPredictor(layout.lags, *shape) if layout.lags else None
        self.seen = np.zeros((3, layout.width), np.int64)
        near, prior = self.lags is not None, (layout.prior - 128) * 32
        self.nodes = 2 << min(self.levels, _LEVELS)
        self.presence = Mixer([64, 64, *[64] * len(sides), *[64, 16, 64, 64] * near], prior)
        self.opening = max(_chance(prior) >> 7, 1)
        self.sign = Mixer([16, *[20] * near])
        self.size = Mixer([self.nodes, *[16 * self.nodes] * (2 + near)])
        self.run = max(_LEAST_BATCH, layout.size // _BATCHES)
        self.code_run = max(_LEAST_BATCH, layout.size // _CODE_BATCHES)

    def walk(self, symbols: np.ndarray | None) -> np.ndarray:
        """Encode symbols, `(size,)` int64, line by line; without symbols, decode them."""
        width, size = self.layout.width, self.layout.size
        coded = [np.zeros(0, np.int64)]
        for line, start in enumerate(range(0, size, width)):
            given = None if symbols is None else symbols[start : start + width]
            coded.append(self._line(line, min(width, size - start), given))
        return np.concatenate(coded)

    def _line(self, line: int, count: int, symbols: np.ndarray | None) -> np.ndarray:
        near = self.lags.sums(line)[..., :count] if self.lags else None
        there = np.ones(count, np.int64)
        if self.holes:
            contexts = self._presence_contexts(line, count, near)
            there = self._presence(contexts, None if symbols is None else _bits(symbols > 0))
        at = np.flatnonzero(there)
        for start in range(0, len(at), self.code_run):
            run = at[start : start + self.code_run]
            codes = None if symbols is None else symbols[run] - self.holes
            there[run] = self._codes(run, len(at), near, codes) + self.holes
        self._note(line, at, there[at] - self.holes)
        return there

    def _presence_contexts(self, line: int, count: int, near: np.ndarray | None) -> np.ndarray:
        contexts = [density_class(16 * self.seen[0, :count] + 5, 16 * (line + 1))]
        contexts += [side[line, :count] for side in self.sides]
        if near is not None and self.lags:
            reach = self.lags.reach(line) * count // 4 + 16
            size = near[2, 0] << 3 if self.layout.alphabet - self.holes > 1 else near[2, 0]
            contexts += [np.full(count, density_class(near[0, 0].sum() // 4 + 1, reach))]
            contexts += [self.lags.pattern(line)[:count], np.minimum(near[0, 0] >> 2, 63)]
            contexts += [np.minimum(size >> self.levels + 2, 63)]
        return np.stack(contexts)

    def _presence(self, contexts: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Code the presence mask of a line, with the density of the line so far as a context."""
        there = np.zeros(contexts.shape[1], np.int64)
        for start in range(0, len(there), self.run):
            run = slice(start, start + self.run)
            density = density_class(64 * int(there.sum()) + self.opening, 64 * (start + 8))
            here = np.full((1, len(there[run])), density)
            here = np.concatenate([here, contexts[:, run]])
            there[run] = self.presence.code(self.coder, here, None if bits is None else bits[run])
        return there

    def _codes(
        self, at: np.ndarray, total: int, near: np.ndarray | None, codes: np.ndarray | None
    ) -> np.ndarray:
        """Code the symbols at some positions of a line that holds `total` codes."""
        center = self.layout.center
        count, sign, size = self.seen[:, at]
        around = None if near is None else near[:, 1, at]
        above = np.ones_like(at)
        if center:
            contexts = [sign * 4 // (count + 1) + 8]
            if around is not None:
                contexts.append(around[1] * 10 // (around[0] + 6) + 10)
            bits = None if codes is None else _bits(codes >= center)
            above = self.sign.code(self.coder, np.stack(contexts), bits)
        crowd = min(int(_log2(total)) >> 7, 15)
        classes = [np.zeros_like(at), np.full_like(at, crowd)]
        classes.append(_magnitude_class(size, count, self.levels, 28))
        if around is not None:
            classes.append(_magnitude_class(around[2], around[0], self.levels, 14))
        sizes = None if codes is None else _sizes(codes, center)
        size = self._magnitudes(np.stack(classes) * self.nodes, above, sizes)
        return np.where(above, center + size, center - 1 - size)

    def _magnitudes(
        self, classes: np.ndarray, above: np.ndarray, sizes: np.ndarray | None
    ) -> np.ndarray:
        """Code magnitudes from the highest bit down, as a path from the root of a binary tree."""
        size = np.zeros_like(above)
        for known in range(self.levels):
            node = (1 << known) + size + above * (self.nodes >> 1)
            contexts = classes + node if known < _LEVELS else np.zeros_like(classes)
            bits = None if sizes is None else sizes >> self.levels - 1 - known & 1
            size = 2 * size + self.size.code(self.coder, contexts, bits)
        return size

    def _note(self, line: int, at: np.ndarray, codes: np.ndarray) -> None:
        center = self.layout.center
        fields = np.zeros((3, self.layout.width), np.int64)
        fields[0, at] = 1
        fields[1, at] = np.where(codes >= center, 1, -1)
        fields[2, at] = _sizes(codes, center) + 1
        self.seen += fields
        if self.lags:
            self.lags.push(line, fields)


def _bits(condition: np.ndarray) -> np.ndarray:
    return condition.astype(np.int64)


def _sizes(codes: np.ndarray, center: int) -> np.ndarray:
    """Return the distance of codes from the center, counted from 0 on either side."""
    return np.where(codes >= center, codes - center, center - 1 - codes)
