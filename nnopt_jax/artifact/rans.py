"""Range asymmetric numeral systems over many lanes: large streams at the speed of whole arrays."""

from __future__ import annotations

import zlib

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


def encode(symbols: np.ndarray, alphabet: int) -> bytes:
    """Codes symbols with one table, near their order-0 entropy.

    Small alphabets are grouped, as many symbols as 256 combinations allow, for speed. Symbol `i`
    of a group lies in the `i`-th part of the stream.

    Args:
        symbols: integers below `alphabet`, at least two different ones.
        alphabet: 2 to `MOST_SYMBOLS`.

    Returns:
        Table, lanes and words.

    Example:
        >>> symbols = np.random.default_rng(0).integers(0, 3, 100_000)
        >>> data = encode(symbols, 3)
        >>> len(data), bool((decode(data, 100_000, 3) == symbols).all())
        (20164, True)

    References:
        Duda 2014, Asymmetric numeral systems; Giesen 2014, Interleaved entropy coders.
    """
    grouped = _group(symbols, alphabet)
    counts = np.bincount(grouped)
    table = _frequencies(counts)
    seen = counts[counts > 0]
    size = -(seen * np.log2(seen / seen.sum())).sum() / 8
    least = -(-len(grouped) // _MOST_STEPS)
    lanes = int(np.clip(size / _LANE_SHARE, least, max(least, _MOST_LANES)))
    states, words = _push(grouped, table, lanes)
    packed = zlib.compress(b"".join(varint(int(part)) for part in table), 9)
    starts = states.astype("<u8")[:, None].view(np.uint8)[:, :_STATE_BYTES]
    head = varint(len(table)) + varint(len(packed)) + packed + varint(lanes)
    return head + starts.tobytes() + words.astype("<u2").tobytes()


def decode(data: bytes, size: int, alphabet: int) -> np.ndarray:
    """Reads what `encode` wrote.

    Args:
        data: the bytes, whole.
        size: number of symbols.
        alphabet: as it was given to `encode`.

    Returns:
        The symbols: uint8, or uint16 above an alphabet of 256.

    Raises:
        ArtifactError: the data are malformed.
    """
    reader = Reader(data)
    group = _group_size(alphabet)
    table = _read_table(reader, alphabet**group)
    lanes = reader.varint()
    groups = -(-size // group)
    if not groups <= lanes * _MOST_STEPS:
        raise ArtifactError(f"malformed: {lanes} rANS lanes for {groups} groups.")
    starts = np.frombuffer(reader.take(_STATE_BYTES * lanes), np.uint8).reshape(lanes, -1)
    states = np.zeros((lanes, 8), np.uint8)
    states[:, :_STATE_BYTES] = starts
    rest = reader.rest()
    if len(rest) % 2:
        raise ArtifactError("malformed: rANS words end with half a word.")
    grouped = _pull(states.view("<u8")[:, 0], np.frombuffer(rest, "<u2"), table, groups)
    return _ungroup(grouped, size, alphabet)


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


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Scales counts to sum to 2^16, at least 1 for each symbol that occurs."""
    table = np.maximum(np.rint(counts * (_SCALE / counts.sum())), counts > 0).astype(np.int64)
    while excess := int(table.sum()) - _SCALE:
        largest = np.argsort(-table, kind="stable")[: min(abs(excess), int((table > 1).sum()))]
        table[largest] -= np.sign(excess)
    return table


def _read_table(reader: Reader, most: int) -> np.ndarray:
    count = reader.varint(most)
    inflate = zlib.decompressobj()
    try:
        plain = Reader(inflate.decompress(reader.part(), 3 * count + 1))
    except zlib.error as error:
        raise ArtifactError(f"malformed: a table of frequencies ({error}).") from error
    if not inflate.eof or inflate.unused_data:
        raise ArtifactError("malformed: a table of frequencies of the wrong length.")
    table = np.array([plain.varint(_SCALE - 1) for _ in range(count)], np.int64)
    plain.end()
    if table.sum() != _SCALE:
        raise ArtifactError(f"malformed: frequencies sum to {table.sum()}, not {_SCALE}.")
    return table


def _push(symbols: np.ndarray, table: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes backwards, lane `i` taking symbols `i`, `i + lanes`, ..."""
    below = (np.cumsum(table) - table).astype(np.uint64)
    share = table.astype(np.uint64)
    states = np.full(lanes, _FLOOR, np.uint64)
    words = []
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        step = symbols[start : start + lanes]
        state, part = states[: len(step)], share[step]
        full = state >= part << np.uint64(48 - _BITS)
        words.append(state[full].astype(np.uint16))
        state[full] >>= np.uint64(16)
        whole = state // part
        state += (whole << np.uint64(_BITS)) - whole * part + below[step]
    return states, np.concatenate(words[::-1])


def _pull(states: np.ndarray, words: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    """Undoes `_push`; every state must come back to where it started."""
    owner = np.repeat(np.arange(len(table), dtype=np.uint16), table)
    share = table.astype(np.uint64)[owner]
    offset = (
        np.arange(_SCALE, dtype=np.uint64) - (np.cumsum(table) - table).astype(np.uint64)[owner]
    )
    states, incoming = states.astype(np.uint64), words.astype(np.uint64)
    slots = np.empty(size, np.uint16)
    read = 0
    for start in range(0, size, len(states)):
        state = states[: size - start]
        slot = (state & np.uint64(_SCALE - 1)).astype(np.int64)
        slots[start : start + len(state)] = slot
        state >>= np.uint64(_BITS)
        state *= share.take(slot)
        state += offset.take(slot)
        low = np.flatnonzero(state < _FLOOR)
        taken = incoming[read : read + len(low)]
        if len(taken) < len(low):
            raise ArtifactError("truncated: rANS words end before the symbols do.")
        state[low] = state.take(low) << np.uint64(16) | taken
        read += len(low)
    if read != len(words) or (states != _FLOOR).any():
        raise ArtifactError("malformed: rANS words do not fit the symbols.")
    return owner.astype(np.uint8 if len(table) <= 256 else np.uint16)[slots]
