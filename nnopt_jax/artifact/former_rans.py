"""The rANS streams of earlier versions, which are read but not written: many interleaved states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact.byte_io import ByteReader
from nnopt_jax.artifact.rans import read_groups, read_words, symbol_type, ungroup
from nnopt_jax.errors import ArtifactError

_BITS = 16
_SCALE = 1 << _BITS
_FLOOR = 1 << 32
_STATE_BYTES = 6
_STEPS = 1 << 18
"""The greatest number of groups in a lane, which bounds the work of decoding."""


def decode(data: bytes, sizes: Sequence[int], alphabet: int) -> list[np.ndarray]:
    """Decode a stream of an earlier version, with many interleaved states of 48 bits.

    Args:
        data: all bytes.
        sizes: the number of symbols of each part.
        alphabet: the number of symbols.

    Returns:
        The parts, as `rans.decode` returns them.

    Raises:
        ArtifactError: the data is malformed.
    """
    reader = ByteReader(data)
    groups, tables = read_groups(reader, sizes, alphabet, _SCALE)
    lanes = reader.varint()
    if not 0 < sum(groups) <= lanes * _STEPS:
        raise ArtifactError(f"malformed: {lanes} rANS lanes for {sum(groups)} groups.")
    states = np.zeros((lanes, 8), np.uint8)
    starts = np.frombuffer(reader.take(_STATE_BYTES * lanes), np.uint8)
    states[:, :_STATE_BYTES] = starts.reshape(lanes, -1)
    runs = _pull(states.view("<u8")[:, 0], read_words(reader), tables, groups)
    return [ungroup(run, size, alphabet) for run, size in zip(runs, sizes, strict=True)]


def _pull(
    states: np.ndarray, words: np.ndarray, tables: list[np.ndarray], sizes: list[int]
) -> list[np.ndarray]:
    """Decode words of interleaved states, each of which must return to its initial value."""
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
        runs.append(owner.astype(symbol_type(table))[slots])
    if read != len(words) or (states != _FLOOR).any():
        raise ArtifactError("malformed: rANS words do not fit the symbols.")
    return runs
