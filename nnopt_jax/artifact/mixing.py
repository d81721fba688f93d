"""Logistic mixing: what many counts say about the next bits, weighed by how right each has been."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact.arithmetic import ODDS_BITS, Coder

_ONE = 64
"""What one observation adds to a count."""
_PRIOR = 2 * _ONE
"""What a context counts as having seen before it has seen anything, where ones are not rare."""
_MOST = 1 << 20
"""Counts stay below; both counts of a context are halved well before."""
_STRETCH = 256
"""Units of log-odds in one doubling of the odds."""
_RATE = 15
"""Weights learn at 2^-15 of the gradient in their fixed point, and slower with every mistake."""
_STEP = 1 << 13
"""The most a weight moves after one batch: an eighth."""


@functools.cache
def _logarithms() -> np.ndarray:
    """`256 log2(n)`, rounded. No value comes near a half, so every platform rounds alike."""
    table = np.zeros(_MOST, np.int16)
    table[1:] = np.rint(_STRETCH * np.log2(np.arange(1, _MOST)))
    return table


@functools.cache
def _squash() -> np.ndarray:
    """Odds of log-odds `-4096 .. 4095`, rounded likewise."""
    chance = 1 / (1 + 2.0 ** (-np.arange(-4096, 4096) / _STRETCH))
    return np.rint(chance * 2**ODDS_BITS).clip(1, 2**ODDS_BITS - 1).astype(np.int64)


def log2(values: np.ndarray) -> np.ndarray:
    """Logarithms to base 2 of integers from 1, in units of 2^-8; those of 2^20 and more are one.

    Example:
        >>> log2(np.array([1, 2, 3]))
        array([  0, 256, 406], dtype=int16)
    """
    return _logarithms()[np.minimum(values, _MOST - 1)]


def chance(prior: int) -> int:
    """The chance of a one, in units of 2^-16, from log-odds of 256 to a doubling.

    Example:
        >>> chance(0), chance(-256)
        (32768, 21845)
    """
    return int(_squash()[min(max(prior, -4096), 4095) + 4096])


def opening(prior: int) -> tuple[int, int]:
    """Counts of zeros and ones to begin with: about two observations, more where one is rare.

    Example:
        >>> opening(0), opening(-10 * 256)
        ((64, 64), (1023, 1))
    """
    one = chance(prior)
    zero = (1 << ODDS_BITS) - one
    if min(one, zero) * _PRIOR < 1 << ODDS_BITS:
        return max(zero // one, 1), max(one // zero, 1)
    ones = one * _PRIOR >> ODDS_BITS
    return _PRIOR - ones, ones


class Mixer:
    r"""Odds for bits, mixed from adaptive counts; integers only, so that they never differ.

    .. math:: \mathrm{odds} = \sigma\Big(b + \sum_i w_i \big(\ln\tfrac{n^1_i}{n^0_i} - b\big)\Big)

    Each of `k` models sorts a bit into one of its contexts and counts ones and zeros there; `b` is
    the log-odds before anything was seen, and the weights follow the gradient of the code length.
    Bits are handled in batches: the bits of one batch do not see each other.

    Args:
        sizes: how many contexts each model has.
        prior: log-odds of a one before anything was seen, 256 to a doubling of the odds.

    Example:
        >>> from nnopt_jax.artifact.arithmetic import Encoder
        >>> mixer, writer = Mixer([2], prior=0), Encoder()
        >>> contexts = np.array([[0, 1] * 50])
        >>> for _ in range(20):
        ...     _ = mixer.code(writer, contexts, contexts[0])
        >>> len(writer.finish())  # two thousand bits that their context tells
        13

    References:
        Mahoney 2005, Adaptive weighing of context models for lossless data compression; Wiedemann
        et al. 2020, DeepCABAC, for coding weights by binary decisions with adaptive contexts.
    """

    def __init__(self, sizes: Sequence[int], prior: int) -> None:
        self._start = np.cumsum([0, *sizes[:-1]])[:, None]
        # The zeros of all contexts, then the ones: a bit of value y is counted at y * total.
        self._ones = sum(sizes)
        self._counts = np.repeat(opening(prior), self._ones)
        self._room = 0
        self._base = prior
        self._weights = np.full(len(sizes), int(2**16 * 1.4 / max(len(sizes), 1.4)))
        self._mistakes = 0
        self._logarithms, self._squash = _logarithms(), _squash()

    def code(self, coder: Coder, contexts: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Codes one batch of bits and learns from it.

        Args:
            coder: writes or reads.
            contexts: `(k, n)`: the context of every bit in every model.
            bits: `(n,)` zeros and ones to write, or None to read them.

        Returns:
            The bits.
        """
        at = contexts + self._start
        seen = self._logarithms[self._counts[at + self._ones]]
        said = np.subtract(seen, self._logarithms[self._counts[at]], dtype=np.int64) - self._base
        mixed = (self._weights @ said >> 16) + (self._base + 4096)
        odds = self._squash[np.minimum(np.maximum(mixed, 0), 8191)]
        bits = coder.code(odds, bits)
        wrong = (bits << ODDS_BITS) - odds
        self._mistakes += int(np.abs(wrong).sum()) >> ODDS_BITS
        rate = _RATE + max(0, self._mistakes.bit_length() - 7) // 2
        self._weights += (said @ wrong + (1 << rate - 1) >> rate).clip(-_STEP, _STEP)
        self._make_room(_ONE * len(bits))
        np.add.at(self._counts, (at + bits * self._ones).ravel(), _ONE)
        return bits

    def _make_room(self, most: int) -> None:
        """Halves large counts, so that none can grow out of the table of logarithms."""
        self._room -= most
        if self._room > 0:
            return
        pairs = self._counts.reshape(2, -1)
        large = pairs.max(0) > _MOST // 2
        pairs[:, large] = pairs[:, large] + 1 >> 1
        self._room = _MOST - 1 - int(pairs.max()) - most
