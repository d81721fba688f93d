"""Range asymmetric numeral systems over many lanes: large streams at the speed of whole arrays."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact.wire import Reader, varint
from nnopt_jax.errors import ArtifactError

_BITS = 16
_SCALE = 1 << _BITS
"""Frequencies of a table sum to this."""
_FLOOR = 1 << 32
"""A lane's state lies in `2^32 .. 2^48 - 1`; below, it takes in a word of 16 bits."""
_STATE_BYTES = 6
_LANE_SHARE = 1500
"""Bytes of code for each lane: its start and end cost about five."""
_MOST_LANES = 1 << 13
_MOST_STEPS = 1 << 18
"""Groups in a lane at most, so that no stream takes forever."""

MOST_SYMBOLS = 4096
"""The largest alphabet: rarer symbols would get too large a share of a table."""


def encode(parts: Sequence[np.ndarray], alphabet: int) -> bytes:
    """Codes runs of symbols, each with a table of its own, near their order-0 entropy.

    Small alphabets are grouped, as many symbols as 256 combinations allow, for speed. Symbol `i`
    of a group lies in the `i`-th stretch of its part.

    Args:
        parts: integers below `alphabet`; no part is empty.
        alphabet: 2 to `MOST_SYMBOLS`.

    Returns:
        Tables, lanes and words.

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
    lanes = int(np.clip(size / _LANE_SHARE, least, max(least, _MOST_LANES)))
    states, words = _push(runs, tables, lanes)
    text = b"".join(varint(len(table)) + b"".join(map(varint, table.tolist())) for table in tables)
    packed = zlib.compress(text, 9)
    starts = states.astype("<u8")[:, None].view(np.uint8)[:, :_STATE_BYTES]
    head = varint(len(packed)) + packed + varint(lanes)
    return head + starts.tobytes() + words.astype("<u2").tobytes()


def decode(data: bytes, sizes: Sequence[int], alphabet: int) -> list[np.ndarray]:
    """Reads what `encode` wrote.

    Args:
        data: the bytes, whole.
        sizes: number of symbols of each part.
        alphabet: as it was given to `encode`.

    Returns:
        The parts: uint8, or uint16 above an alphabet of 256.

    Raises:
        ArtifactError: the data are malformed.
    """
    reader = Reader(data)
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
    """How many symbols make one of at most 256 combinations."""
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
    """Bytes that no table of frequencies goes below.

    Example:
        >>> entropy(np.array([8, 0, 8]))
        2.0
    """
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum() / 8)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Scales counts to sum to 2^16, at least 1 for each symbol that occurs."""
    table = np.maximum(np.rint(counts * (_SCALE / counts.sum())), counts > 0).astype(np.int64)
    while excess := int(table.sum()) - _SCALE:
        largest = np.argsort(-table, kind="stable")[: min(abs(excess), int((table > 1).sum()))]
        table[largest] -= np.sign(excess)
    return table


def _read_tables(reader: Reader, most: int, count: int) -> list[np.ndarray]:
    inflate = zlib.decompressobj()
    try:
        plain = Reader(inflate.decompress(reader.part(), count * (3 * most + 2) + 1))
    except zlib.error as error:
        raise ArtifactError(f"malformed: tables of frequencies ({error}).") from error
    if not inflate.eof or inflate.unused_data:
        raise ArtifactError("malformed: tables of frequencies of the wrong length.")
    tables = []
    for _ in range(count):
        entries = [plain.varint(_SCALE) for _ in range(plain.varint(most))]
        if sum(entries) != _SCALE:
            raise ArtifactError(f"malformed: frequencies sum to {sum(entries)}, not {_SCALE}.")
        tables.append(np.array(entries, np.int64))
    plain.end()
    return tables


def _push(
    runs: list[np.ndarray], tables: list[np.ndarray], lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes backwards, lane `i` taking symbols `i`, `i + lanes`, ... of every run."""
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
    """Undoes `_push`; every state must come back to where it started."""
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
