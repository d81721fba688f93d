"""Range asymmetric numeral systems (rANS) with many lanes, for large streams at array speed.

Large arrays are divided into classes of similar rows and columns, each with its own frequency
table. After pruning, some inputs and outputs of a layer have more weights than others, and after
quantization with one scale, larger codes. Rows and columns are sorted by activity; blocks with an
equal sum of row class and column class then have about the same distribution of symbols.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from nnopt_jax.artifact.byte_io import ByteReader, inflate, varint
from nnopt_jax.errors import ArtifactError

_BITS = 16
_SCALE = 1 << _BITS
"""The sum of the frequencies of a table."""
_FLOOR = 1 << 32
"""The least state of a lane: states are `2^32 .. 2^48 - 1`, renormalized by 16-bit words."""
_STATE_BYTES = 6
_LANE_BYTES = 1500
"""The bytes of code for each lane, whose start and end cost about five bytes."""
_MOST_LANES = 1 << 13
_MOST_STEPS = 1 << 18
"""The greatest number of groups in a lane, which bounds the work of decoding."""

MOST_SYMBOLS = 4096
"""The largest alphabet; in larger ones, rare symbols would take too much of a table."""

CLASSES = 32
"""The number of classes of rows, and of columns."""
_STEPS = 2
"""The number of classes for a doubling of the activity of a row."""
_COMMON = 0.25

Block = tuple[np.ndarray, np.ndarray]
"""The indices of rows and of columns."""


def encode(parts: Sequence[np.ndarray], alphabet: int) -> bytes:
    """Encode runs of symbols, each with its own table, near their order-0 entropy.

    For speed, symbols of small alphabets are grouped, as many as 256 combinations allow. Symbol `i`
    of a group comes from the `i`-th section of its part.

    Args:
        parts: integers below `alphabet`; no part is empty.
        alphabet: 2 to `MOST_SYMBOLS`.

    Returns:
        The tables, the states of the lanes, and the words.

    Example:
        >>> symbols = np.random.default_rng(0).integers(0, 3, 100_000)
        >>> data = encode([symbols], 3)
        >>> len(data) < 20_200, bool((decode(data, [100_000], 3)[0] == symbols).all())
        (True, True)

    References:
        Duda 2014, Asymmetric numeral systems; Giesen 2014, Interleaved entropy coders.
    """
    runs = [_group(part, alphabet) for part in parts]
    counts = [np.bincount(run) for run in runs]
    tables = [_frequencies(count) for count in counts]
    size = sum(map(entropy, counts))
    least = -(-sum(map(len, runs)) // _MOST_STEPS)
    lanes = int(np.clip(size / _LANE_BYTES, least, max(least, _MOST_LANES)))
    states, words = _push(runs, tables, lanes)
    text = b"".join(varint(len(table)) + b"".join(map(varint, table.tolist())) for table in tables)
    packed = zlib.compress(text, 9)
    starts = states.astype("<u8")[:, None].view(np.uint8)[:, :_STATE_BYTES]
    head = varint(len(packed)) + packed + varint(lanes)
    return head + starts.tobytes() + words.astype("<u2").tobytes()


def decode(data: bytes, sizes: Sequence[int], alphabet: int) -> list[np.ndarray]:
    """Decode what `encode` wrote.

    Args:
        data: all bytes.
        sizes: the number of symbols of each part.
        alphabet: as given to `encode`.

    Returns:
        The parts: uint8, or uint16 above an alphabet of 256.

    Raises:
        ArtifactError: the data is malformed.
    """
    reader = ByteReader(data)
    group = _group_size(alphabet)
    groups = [-(-size // group) for size in sizes]
    tables = _read_tables(reader, alphabet**group, len(sizes))
    lanes = reader.varint()
    if not 0 < sum(groups) <= lanes * _MOST_STEPS:
        raise ArtifactError(f"malformed: {lanes} rANS lanes for {sum(groups)} groups.")
    states = np.zeros((lanes, 8), np.uint8)
    starts = np.frombuffer(reader.take(_STATE_BYTES * lanes), np.uint8)
    states[:, :_STATE_BYTES] = starts.reshape(lanes, -1)
    rest = reader.rest()
    if len(rest) % 2:
        raise ArtifactError("malformed: rANS words end with half a word.")
    runs = _pull(states.view("<u8")[:, 0], np.frombuffer(rest, "<u2"), tables, groups)
    return [_ungroup(run, size, alphabet) for run, size in zip(runs, sizes, strict=True)]


def _group_size(alphabet: int) -> int:
    """Return how many symbols can be grouped to at most 256 combinations."""
    return max(n for n in range(1, 9) if n == 1 or alphabet**n <= 256)


def _group(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    group = _group_size(alphabet)
    if group == 1:
        return symbols
    parts = np.zeros((group, -(-len(symbols) // group)), np.uint8)
    parts.ravel()[: len(symbols)] = symbols
    grouped = parts[0].copy()
    for part, scale in zip(parts[1:], alphabet ** np.arange(1, group), strict=True):
        grouped += part * np.uint8(scale)
    return grouped


def _ungroup(grouped: np.ndarray, size: int, alphabet: int) -> np.ndarray:
    group = _group_size(alphabet)
    if group == 1:
        return grouped
    scales = alphabet ** np.arange(group)
    digits = (np.arange(256) // scales[:, None] % alphabet).astype(np.uint8)
    return np.concatenate([table[grouped] for table in digits])[:size]


def entropy(counts: np.ndarray) -> float:
    """Return the least number of bytes of a code with one frequency table.

    Example:
        >>> entropy(np.array([8, 0, 8]))
        2.0
    """
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum() / 8)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts to a sum of 2^16, with at least 1 for each symbol that occurs."""
    table = np.maximum(np.rint(counts * (_SCALE / counts.sum())), counts > 0).astype(np.int64)
    while excess := int(table.sum()) - _SCALE:
        largest = np.argsort(-table, kind="stable")[: min(abs(excess), int((table > 1).sum()))]
        table[largest] -= np.sign(excess)
    return table


def _read_tables(reader: ByteReader, most: int, count: int) -> list[np.ndarray]:
    what = "text of tables of frequencies"
    text, rest = inflate(reader.part(), count * (3 * most + 2), what)
    if rest:
        raise ArtifactError(f"malformed {what}: {len(rest)} bytes too many.")
    reader = ByteReader(text)
    tables = []
    for _ in range(count):
        entries = [reader.varint(_SCALE) for _ in range(reader.varint(most))]
        if sum(entries) != _SCALE:
            raise ArtifactError(f"malformed: frequencies sum to {sum(entries)}, not {_SCALE}.")
        tables.append(np.array(entries, np.int64))
    reader.end()
    return tables


def _push(
    runs: list[np.ndarray], tables: list[np.ndarray], lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encode backwards; lane `i` takes the symbols `i`, `i + lanes`, ... of every run."""
    states = np.full(lanes, _FLOOR, np.uint64)
    words = [np.zeros(0, np.uint16)]
    for run, table in zip(reversed(runs), reversed(tables), strict=True):
        below = (np.cumsum(table) - table).astype(np.uint64)
        share = table.astype(np.uint64)
        for start in range((len(run) - 1) // lanes * lanes, -1, -lanes):
            step = run[start : start + lanes]
            state, part = states[: len(step)], share[step]
            full = state >= part << np.uint64(48 - _BITS)
            words.append(state[full].astype(np.uint16))
            state[full] >>= np.uint64(16)
            whole = state // part
            state += (whole << np.uint64(_BITS)) - whole * part + below[step]
    return states, np.concatenate(words[::-1])


def _pull(
    states: np.ndarray, words: np.ndarray, tables: list[np.ndarray], sizes: list[int]
) -> list[np.ndarray]:
    """Invert `_push`; every state must return to its initial value."""
    states, incoming = states.astype(np.int64), words.astype(np.int64)
    runs, read = [], 0
    for table, size in zip(tables, sizes, strict=True):
        owner = np.repeat(np.arange(len(table), dtype=np.uint16), table)
        share, offset = table[owner], np.arange(_SCALE) - (np.cumsum(table) - table)[owner]
        slots = np.empty(size, np.uint16)
        for start in range(0, size, len(states)):
            state = states[: size - start]
            slot = state & _SCALE - 1
            slots[start : start + len(state)] = slot
            state >>= _BITS
            state *= share.take(slot)
            state += offset.take(slot)
            (low,) = (state < _FLOOR).nonzero()
            taken = incoming[read : read + len(low)]
            if len(taken) < len(low):
                raise ArtifactError("truncated: rANS words end before the symbols do.")
            state[low] = state.take(low) << 16 | taken
            read += len(low)
        runs.append(owner.astype(np.uint8 if len(table) <= 256 else np.uint16)[slots])
    if read != len(words) or (states != _FLOOR).any():
        raise ArtifactError("malformed: rANS words do not fit the symbols.")
    return runs


# ---------------------------------------------------------------------- classes


def find_classes(matrix: np.ndarray, alphabet: int, center: int) -> list[np.ndarray]:
    """Sort the rows and columns of a matrix of symbols into classes.

    The activity of a row is the number of its symbols other than the most common one or, if no
    symbol is common, their distance from the center.

    Args:
        matrix: `(rows, columns)`, not empty.
        alphabet: the number of symbols.
        center: the first symbol that stands for a non-negative value.

    Returns:
        The classes of the rows and of the columns, uint8 below `CLASSES`.

    Example:
        >>> find_classes(np.array([[0, 0, 0, 0], [0, 1, 0, 1]]), 2, 0)
        [array([ 0, 31], dtype=uint8), array([ 0, 31,  0, 31], dtype=uint8)]
    """
    counts = np.bincount(matrix.ravel(), minlength=alphabet)
    top = int(counts.argmax())
    if counts[top] >= _COMMON * matrix.size:
        weight = (np.arange(alphabet) != top).astype(np.float32)
    else:
        weight = np.abs(np.arange(alphabet, dtype=np.float32) - center)
    classes = []
    for axis in (1, 0):
        busy = weight[matrix].mean(axis)
        level = np.rint(
            _STEPS * np.log2(np.maximum(busy, 2.0 ** -(CLASSES // _STEPS) * busy.max()))
        )
        classes.append(np.clip(level - level.min(), 0, CLASSES - 1).astype(np.uint8))
    return classes


def class_blocks(rows: np.ndarray, columns: np.ndarray) -> list[list[Block]]:
    """List the blocks of each sum of row and column class that occurs, in a fixed order.

    Args:
        rows: the classes of the rows.
        columns: the classes of the columns.

    Example:
        >>> found = class_blocks(np.array([0, 1, 0]), np.array([0, 0]))
        >>> [[(a.tolist(), b.tolist()) for a, b in block] for block in found]
        [[([0, 2], [0, 1])], [([1], [0, 1])]]
    """
    by_sum: dict[int, list[Block]] = {}
    for row, its_rows in _members(rows):
        for column, its_columns in _members(columns):
            by_sum.setdefault(row + column, []).append((its_rows, its_columns))
    return [by_sum[total] for total in sorted(by_sum)]


def _members(classes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for kind in np.unique(classes).tolist():
        yield kind, np.flatnonzero(classes == kind)


def gather(matrix: np.ndarray, blocks: list[Block]) -> np.ndarray:
    """Return the symbols of one class, flat."""
    return np.concatenate([matrix[np.ix_(*block)].ravel() for block in blocks])


def scatter(matrix: np.ndarray, blocks: list[Block], symbols: np.ndarray) -> None:
    """Put the symbols of one class back where `gather` took them."""
    at = 0
    for rows, columns in blocks:
        size = len(rows) * len(columns)
        matrix[np.ix_(rows, columns)] = symbols[at : at + size].reshape(len(rows), -1)
        at += size
