"""What a weight's neighbors say about it: the context model of small and middle-sized streams.

Symbols lie in lines, as the rows of a weight matrix do. A line is coded after the lines above it,
so that contexts are computed for whole runs of symbols at once. Three questions are asked of a
symbol, in bits that `mixing` gives odds to: is it there at all, on which side of the center does
it lie, and how far from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact.arithmetic import Coder
from nnopt_jax.artifact.lags import Past
from nnopt_jax.artifact.mixing import Mixer, chance, log2

_BATCHES, _CODE_BATCHES = 2048, 512
"""About how many batches presence, and codes, are coded in at least: each costs time."""
_LEAST_BATCH = 32
_EVEN = 0
"""The prior of a bit that is as likely 0 as 1."""
_LEVELS = 8
"""Bits of a magnitude that have its higher bits for context; those below have none."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a stream lies in lines, and what its symbols mean.

    Args:
        size: number of symbols.
        width: symbols in a line; the last line may be shorter.
        codes: how many codes there are.
        holes: whether symbol 0 stands for "nothing here", and code `c` is symbol `c + 1`.
        center: codes below it count as negative.
        prior: log-odds that a symbol is there, 256 to a doubling.
        lags: distances in lines at which weights resemble each other; none, one or two.
    """

    size: int
    width: int
    codes: int
    holes: bool
    center: int
    prior: int
    lags: tuple[int, ...] = ()

    @property
    def lines(self) -> int:
        """Number of lines."""
        return -(-self.size // self.width)

    @property
    def levels(self) -> int:
        """Bits of a magnitude."""
        return (max(self.center, self.codes - self.center) - 1).bit_length()

    @property
    def run(self) -> int:
        """Most symbols whose presence is coded in one batch."""
        return max(_LEAST_BATCH, self.size // _BATCHES)

    @property
    def code_run(self) -> int:
        """Most codes in one batch."""
        return max(_LEAST_BATCH, self.size // _CODE_BATCHES)


def bucket(numerator: np.ndarray | int, denominator: np.ndarray | int) -> np.ndarray:
    """A density as one of 64 steps, three to a doubling: 60 is one, 0 is 2^-20 and less.

    Example:
        >>> bucket(np.array([1, 1, 3]), 8)
        array([51, 51, 56])
    """
    doublings = log2(np.asarray(numerator)).astype(np.int64) - log2(np.asarray(denominator))
    return np.minimum(np.maximum((3 * doublings + 128 >> 8) + 60, 0), 63)


def share(heft: np.ndarray, count: np.ndarray, levels: int, steps: int) -> np.ndarray:
    """A mean magnitude as one of 16 classes; 0 where there is none.

    Example:
        >>> share(np.array([0, 8, 24]), np.array([0, 2, 2]), levels=4, steps=16)
        array([ 0,  5, 13])
    """
    mean = heft * steps // np.maximum(count << levels, 1)
    return np.where(count > 0, 1 + np.minimum(mean, 14), 0)


def walk(
    coder: Coder, layout: Layout, sides: Sequence[np.ndarray], symbols: np.ndarray | None
) -> np.ndarray:
    """Codes a stream line by line: writes the symbols, or reads them where they are None.

    Args:
        coder: writes or reads bits.
        layout: what both ends know.
        sides: classes `0 .. 63` of every line, `(lines, 1)`, or of every place in a line,
            `(1, width)`, from whatever both ends know besides.
        symbols: `(size,)` int64.

    Returns:
        The symbols, `(size,)` int64.
    """
    model = _Model(coder, layout, sides)
    coded = []
    for line in range(layout.lines):
        start = line * layout.width
        count = min(layout.width, layout.size - start)
        given = None if symbols is None else symbols[start : start + count]
        coded.append(model.line(line, count, given))
    return np.concatenate(coded) if coded else np.zeros(0, np.int64)


class _Model:
    """The state of one walk: what was seen, and the mixers that learn from it.

    Fields come in threes: what is there (0 or 1), its sign (-1 or 1), its size (from 1).
    """

    def __init__(self, coder: Coder, layout: Layout, sides: Sequence[np.ndarray]) -> None:
        self.coder, self.layout = coder, layout
        shape = (layout.lines, layout.width)
        self.sides = [np.broadcast_to(side, shape) for side in sides]
        self.past = Past(layout.lags, *shape) if layout.lags else None
        self.seen = np.zeros((3, layout.width), np.int64)
        near = self.past is not None
        self.nodes = 2 << min(layout.levels, _LEVELS)
        self.presence = Mixer([64, 64, *[64] * len(sides), *[64, 16, 64, 64] * near], layout.prior)
        self.opening = max(chance(layout.prior) >> 7, 1)
        self.sign = Mixer([16, *[20] * near], _EVEN)
        self.size = Mixer([self.nodes, *[16 * self.nodes] * (2 + near)], _EVEN)

    def line(self, line: int, count: int, symbols: np.ndarray | None) -> np.ndarray:
        """Codes one line."""
        layout = self.layout
        near = self.past.sums(line)[..., :count] if self.past else None
        there = np.ones(count, np.int64)
        if layout.holes:
            contexts = self._presence_contexts(line, count, near)
            there = self._presence(contexts, None if symbols is None else _bits(symbols > 0))
        at = np.flatnonzero(there)
        for start in range(0, len(at), layout.code_run):
            run = at[start : start + layout.code_run]
            codes = None if symbols is None else symbols[run] - layout.holes
            codes = self._codes(run, len(at), near, codes)
            there[run] = codes + layout.holes
        self._note(line, at, there[at] - layout.holes)
        return there

    def _presence_contexts(self, line: int, count: int, near: np.ndarray | None) -> np.ndarray:
        contexts = [bucket(16 * self.seen[0, :count] + 5, 16 * (line + 1))]
        contexts += [side[line, :count] for side in self.sides]
        if near is not None and self.past:
            density = bucket(near[0, 0].sum() // 4 + 1, self.past.reach(line) * count // 4 + 16)
            heft = near[2, 0] << 3 if self.layout.codes > 1 else near[2, 0]
            contexts += [np.full(count, density), self.past.pattern(line)[:count]]
            contexts += [np.minimum(near[0, 0] >> 2, 63)]
            contexts += [np.minimum(heft >> self.layout.levels + 2, 63)]
        return np.stack(contexts)

    def _presence(self, contexts: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """Adds the density of the line so far to the contexts, run by run."""
        there = np.zeros(contexts.shape[1], np.int64)
        for start in range(0, len(there), self.layout.run):
            run = slice(start, start + self.layout.run)
            density = bucket(64 * int(there.sum()) + self.opening, 64 * (start + 8))
            here = np.full((1, len(there[run])), density)
            here = np.concatenate([here, contexts[:, run]])
            there[run] = self.presence.code(self.coder, here, None if bits is None else bits[run])
        return there

    def _codes(
        self, at: np.ndarray, total: int, near: np.ndarray | None, codes: np.ndarray | None
    ) -> np.ndarray:
        """Codes what lies at some places of a line that holds `total` codes."""
        center, levels = self.layout.center, self.layout.levels
        count, lean, heft = self.seen[:, at]
        around = None if near is None else near[:, 1, at]
        above = np.ones_like(at)
        if center:
            contexts = [lean * 4 // (count + 1) + 8]
            if around is not None:
                contexts.append(around[1] * 10 // (around[0] + 6) + 10)
            bits = None if codes is None else _bits(codes >= center)
            above = self.sign.code(self.coder, np.stack(contexts), bits)
        crowd = min(int(log2(np.array(total))) >> 7, 15)
        classes = [np.zeros_like(at), np.full_like(at, crowd), share(heft, count, levels, 28)]
        if around is not None:
            classes.append(share(around[2], around[0], levels, 14))
        sizes = None if codes is None else _size(codes, center)
        size = self._sizes(np.stack(classes) * self.nodes, above, sizes)
        return np.where(above, center + size, center - 1 - size)

    def _sizes(
        self, classes: np.ndarray, above: np.ndarray, sizes: np.ndarray | None
    ) -> np.ndarray:
        """Codes magnitudes from the highest bit down: a walk from the root of a binary tree."""
        levels, size = self.layout.levels, np.zeros_like(above)
        for known in range(levels):
            level = levels - 1 - known
            node = (1 << known) + size + above * (self.nodes >> 1)
            contexts = classes + node if known < _LEVELS else np.zeros_like(classes)
            bits = None if sizes is None else sizes >> level & 1
            size = 2 * size + self.size.code(self.coder, contexts, bits)
        return size

    def _note(self, line: int, at: np.ndarray, codes: np.ndarray) -> None:
        center = self.layout.center
        fields = np.zeros((3, self.layout.width), np.int64)
        fields[0, at] = 1
        fields[1, at] = np.where(codes >= center, 1, -1)
        fields[2, at] = _size(codes, center) + 1
        self.seen += fields
        if self.past:
            self.past.push(line, fields)


def _bits(condition: np.ndarray) -> np.ndarray:
    return condition.astype(np.int64)


def _size(codes: np.ndarray, center: int) -> np.ndarray:
    """How far codes lie from the center, counted from 0 on either side."""
    return np.where(codes >= center, codes - center, center - 1 - codes)
