"""Range asymmetric numeral systems (rANS): coding by tables of frequencies, at compiled speed.

XLA compiles the loops over symbols, so that they are as fast as native code wherever JAX runs, and
integer arithmetic gives the same bytes everywhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.artifact.byte_io import ByteReader, inflate, varint
from nnopt_jax.errors import ArtifactError
from nnopt_jax.ops.eager import on_host

_BITS = 15
_SCALE = 1 << _BITS
"""The sum of the frequencies of a table. With 14 or 16 bits, codes of bytes are .04 % larger."""
_FLOOR = 1 << 16
"""The least state: states are `2^16 .. 2^32 - 1`, renormalized by 16-bit words."""
_CHUNK = 1 << 18
"""The symbols of a compiled call: many enough that calls cost little, and few enough for a cache.
One compiled loop serves streams of all lengths."""
_PIECE = 1 << 20
"""The number of elements for which memory is taken at a time."""

MOST_SYMBOLS = 4096
"""The largest alphabet; in larger ones, rare symbols would take too much of a table."""
_SMALL_TABLE = 256


def encode(parts: Sequence[np.ndarray], alphabet: int) -> bytes:
    """Encode runs of symbols, each with its own table, near their order-0 entropy.

    For speed, symbols of small alphabets are grouped, as many as 256 combinations allow. Symbol `i`
    of a group comes from the `i`-th section of its part.

    Args:
        parts: integers below `alphabet`; no part is empty.
        alphabet: 2 to `MOST_SYMBOLS`.

    Returns:
        The tables, the state, and the words.

    Example:
        >>> symbols = np.random.default_rng(0).integers(0, 3, 100_000)
        >>> data = encode([symbols], 3)
        >>> len(data) < 20_200, bool((decode(data, [100_000], 3)[0] == symbols).all())
        (True, True)

    References:
        Duda 2014, Asymmetric numeral systems.
    """
    runs = [_group(part, alphabet) for part in parts]
    tables = [_frequencies(count_symbols(run)) for run in runs]
    text = b"".join(varint(len(table)) + b"".join(map(varint, table.tolist())) for table in tables)
    packed = zlib.compress(text, 9)
    state, words = _push(runs, tables)
    return varint(len(packed)) + packed + state.to_bytes(4, "little") + words.tobytes()


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
    groups, tables = read_groups(reader, sizes, alphabet, _SCALE)
    # A symbol whose probability is at most 1 - 2^-15 takes at least 2^-15 bits.
    coded = sum(n for n, table in zip(groups, tables, strict=True) if not _is_constant(table))
    if coded > (8 * len(data)) << _BITS:
        raise ArtifactError(f"malformed: {len(data)} bytes of rANS for {coded} groups.")
    state = int.from_bytes(reader.take(4), "little")
    runs = _pull(state, read_words(reader), tables, groups)
    return [ungroup(run, size, alphabet) for run, size in zip(runs, sizes, strict=True)]


# ---------------------------------------------------------------------- the compiled loops


def _look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Return the entry of a table for an index that is known to lie in it."""
    return table.at[index].get(mode="promise_in_bounds")


@jax.jit
def _push_chunk(
    state: jax.Array, symbols: jax.Array, count: jax.Array, share: jax.Array, below: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Push `count` symbols onto a state, from the last to the first.

    Args:
        state: the state, uint32.
        symbols: `(_CHUNK,)`.
        count: the number of symbols to encode.
        share: the frequency of each symbol, uint32; not 0.
        below: the sum of the frequencies of smaller symbols, uint32.

    Returns:
        The state; `(_CHUNK + 1,)` words, uint16, of which the last ones count; the first of these.
    """

    def push(done: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        state, start, words = carry
        symbol = _look_up(symbols, count - 1 - done)
        part = _look_up(share, symbol)
        # Each step writes a word, and the next step overwrites it unless it counts.
        word = state.astype(jnp.uint16)
        words = words.at[start].set(word, mode="promise_in_bounds")
        full = state >= part << (32 - _BITS)
        state = jnp.where(full, state >> 16, state)
        after = state + state // part * (_SCALE - part) + _look_up(below, symbol)
        return after, start - full, words

    empty = jnp.zeros(_CHUNK + 1, jnp.uint16)
    last = jnp.int32(_CHUNK)
    state, start, words = jax.lax.fori_loop(0, count, push, (state, last, empty))
    return state, words, start + 1


@jax.jit
def _pull_chunk(
    state: jax.Array,
    words: jax.Array,
    count: jax.Array,
    owner: jax.Array,
    share: jax.Array,
    below: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pull `count` symbols from a state, and read words as it runs low.

    Args:
        state: the state, uint32.
        words: `(_CHUNK,)`, the next words, uint16.
        count: the number of symbols to decode, at most `_CHUNK`.
        owner: `(_SCALE,)`, the symbol of each slot of the scale.
        share: the frequency of each symbol, uint32.
        below: the sum of the frequencies of smaller symbols, uint32.

    Returns:
        The state, `(_CHUNK,)` symbols, and the number of words that were used.
    """

    def pull(done: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        state, used, symbols = carry
        slot = state & (_SCALE - 1)
        symbol = _look_up(owner, slot)
        after = _look_up(share, symbol) * (state >> _BITS) + slot - _look_up(below, symbol)
        low = after < _FLOOR
        after = jnp.where(low, after << 16 | _look_up(words, used), after)
        symbols = symbols.at[done].set(symbol, mode="promise_in_bounds")
        return after, used + low, symbols

    empty = jnp.zeros(_CHUNK, owner.dtype)
    state, used, symbols = jax.lax.fori_loop(0, count, pull, (state, jnp.int32(0), empty))
    return state, symbols, used


def _is_constant(table: np.ndarray) -> bool:
    """Return whether only one symbol occurs, so that nothing needs to be coded."""
    return int(table.max()) == _SCALE


def symbol_type(table: np.ndarray) -> type[np.unsignedinteger]:
    """Return the smallest dtype of the symbols of a table."""
    return np.uint8 if len(table) <= _SMALL_TABLE else np.uint16


def _device_table(values: np.ndarray) -> jax.Array:
    """Return a table in one of two lengths, since each length is compiled."""
    size = _SMALL_TABLE if len(values) <= _SMALL_TABLE else MOST_SYMBOLS
    padded = np.zeros(size, np.uint32)
    padded[: len(values)] = values
    return jax.device_put(padded)


def _push(runs: Sequence[np.ndarray], tables: Sequence[np.ndarray]) -> tuple[int, np.ndarray]:
    """Encode all runs, the last first, so that `_pull` decodes them in order."""
    state: Any = np.uint32(_FLOOR)
    pieces = [np.zeros(0, np.uint16)]
    with on_host():
        for run, table in zip(reversed(runs), reversed(tables), strict=True):
            if _is_constant(table):
                continue
            share = _device_table(np.maximum(table, 1))
            below = _device_table(np.cumsum(table) - table)
            for start in reversed(range(0, len(run), _CHUNK)):
                piece = run[start : start + _CHUNK]
                symbols = np.zeros(_CHUNK, symbol_type(table))
                symbols[: len(piece)] = piece
                given = jax.device_put((state, symbols, np.int32(len(piece))))
                state, words, begin = jax.device_get(_push_chunk(*given, share, below))
                pieces.append(words[begin:])
    return int(state), np.concatenate(pieces[::-1]).astype("<u2", copy=False)


def _pull(
    state: int, words: np.ndarray, tables: Sequence[np.ndarray], sizes: Sequence[int]
) -> list[np.ndarray]:
    """Decode the words that `_push` wrote; raise if the last state is not its first one."""
    runs, at, carry = [], 0, np.uint32(state)
    with on_host():
        for table, size in zip(tables, sizes, strict=True):
            owner = np.repeat(np.arange(len(table), dtype=symbol_type(table)), table)
            given = (owner, _device_table(table), _device_table(np.cumsum(table) - table))
            lookup = jax.device_put(given)
            run = np.full(size, owner[0], owner.dtype)
            for start in range(0, 0 if _is_constant(table) else size, _CHUNK):
                count = min(_CHUNK, size - start)
                window = np.zeros(_CHUNK, np.uint16)  # malformed code may ask for missing words
                available = words[at : at + count]
                window[: len(available)] = available
                coded = jax.device_put((carry, window, np.int32(count)))
                carry, symbols, used = jax.device_get(_pull_chunk(*coded, *lookup))
                run[start : start + count] = symbols[:count]
                at += int(used)
            runs.append(run)
    if at != len(words) or carry != _FLOOR:
        raise ArtifactError("malformed: rANS words do not fit the symbols.")
    return runs


# ---------------------------------------------------------------------- symbols and tables


def group_size(alphabet: int) -> int:
    """Return how many symbols can be grouped to at most 256 combinations."""
    return max(n for n in range(1, 9) if n == 1 or alphabet**n <= 256)


def _group(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    group = group_size(alphabet)
    if group == 1:
        return symbols
    parts = np.zeros((group, -(-len(symbols) // group)), np.uint8)
    parts.ravel()[: len(symbols)] = symbols
    grouped = parts[0].copy()
    for part, scale in zip(parts[1:], alphabet ** np.arange(1, group), strict=True):
        grouped += part * np.uint8(scale)
    return grouped


def ungroup(grouped: np.ndarray, size: int, alphabet: int) -> np.ndarray:
    """Split groups into their `size` symbols; the inverse of `_group`."""
    group = group_size(alphabet)
    if group == 1:
        return grouped
    scales = alphabet ** np.arange(group)
    digits = (np.arange(256) // scales[:, None] % alphabet).astype(np.uint8)
    return np.concatenate([table[grouped] for table in digits])[:size]


def count_symbols(symbols: np.ndarray) -> np.ndarray:
    """Return how often each symbol occurs, up to the largest that does.

    Example:
        >>> count_symbols(np.array([3, 0, 3], np.uint8))
        array([1, 0, 0, 2])
    """
    if symbols.dtype != np.uint8 or symbols.size < 1 << 16:
        return np.bincount(symbols.ravel())
    # `bincount` takes time and 8 bytes for each element: count pairs of bytes, and by pieces.
    flat = np.ascontiguousarray(symbols).ravel()
    pairs, odd = flat[: len(flat) // 2 * 2].view(np.uint16), flat[len(flat) // 2 * 2 :]
    counts = np.zeros((256, 256), np.int64)
    for start in range(0, len(pairs), _PIECE):
        counts += np.bincount(pairs[start : start + _PIECE], minlength=1 << 16).reshape(256, 256)
    total = counts.sum(0) + counts.sum(1) + np.bincount(odd, minlength=256)
    return total[: int(total.nonzero()[0][-1]) + 1]


def entropy(counts: np.ndarray) -> float:
    """Return the least number of bytes of a code with one frequency table.

    Example:
        >>> entropy(np.array([8, 0, 8]))
        2.0
    """
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum() / 8)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts to a sum of `_SCALE`, with at least 1 for each symbol that occurs."""
    table = np.maximum(np.rint(counts * (_SCALE / counts.sum())), counts > 0).astype(np.int64)
    while excess := int(table.sum()) - _SCALE:
        largest = np.argsort(-table, kind="stable")[: min(abs(excess), int((table > 1).sum()))]
        table[largest] -= np.sign(excess)
    return table


def read_groups(
    reader: ByteReader, sizes: Sequence[int], alphabet: int, scale: int
) -> tuple[list[int], list[np.ndarray]]:
    """Return the number of groups of each part, and read their frequency tables.

    Args:
        reader: the stream.
        sizes: the number of symbols of each part.
        alphabet: the number of symbols.
        scale: the sum of the frequencies of a table.

    Raises:
        ArtifactError: the data is malformed.
    """
    group = group_size(alphabet)
    groups = [-(-size // group) for size in sizes]
    return groups, _read_tables(reader, alphabet**group, len(sizes), scale)


def _read_tables(reader: ByteReader, most: int, count: int, scale: int) -> list[np.ndarray]:
    """Read tables of frequencies.

    Args:
        reader: the code.
        most: the greatest number of entries of a table.
        count: the number of tables.
        scale: the sum of the frequencies of each.

    Raises:
        ArtifactError: the tables are malformed.
    """
    what = "text of tables of frequencies"
    text, rest = inflate(reader.part(), count * (3 * most + 2), what)
    if rest:
        raise ArtifactError(f"malformed {what}: {len(rest)} bytes too many.")
    reader = ByteReader(text)
    tables = []
    for _ in range(count):
        entries = [reader.varint(scale) for _ in range(reader.varint(most))]
        if sum(entries) != scale:
            raise ArtifactError(f"malformed: frequencies sum to {sum(entries)}, not {scale}.")
        tables.append(np.array(entries, np.int64))
    reader.end()
    return tables


def read_words(reader: ByteReader) -> np.ndarray:
    """Read the words of 16 bits that end a code; raise if half a word is left."""
    words = reader.rest()
    if len(words) % 2:
        raise ArtifactError("malformed: rANS words end with half a word.")
    return np.frombuffer(words, "<u2")
