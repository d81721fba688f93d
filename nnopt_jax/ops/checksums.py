"""Checksums of arrays that do not depend on how they are sharded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from nnopt_jax.ops.eager import on_host

_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def checksum(x: ArrayLike) -> Array:
    """Return a checksum of the bits of an array and their positions.

    The checksum is `sum_i mix(bits[i] ^ mix(i + seed)) mod 2**32` for two seeds, where `mix` is the
    finalizer of MurmurHash3. Sums do not depend on order, so the result is the same on every mesh,
    at the cost of one small all-reduce. Shape and dtype are not included. The checksum detects
    damage, not manipulation.

    Args:
        x: array of any shape and dtype, including sub-byte integers, bool and typed PRNG keys.

    Returns:
        uint32 of shape `(2,)`.

    Example:
        >>> import numpy as np
        >>> x = np.arange(6, dtype=np.float32)
        >>> print(checksum(x).tolist() == checksum(x[::-1]).tolist())
        False

    References:
        Appleby, MurmurHash3, https://github.com/aappleby/smhasher (fmix32).
    """
    return _checksum(jnp.asarray(x))


@jax.jit
def _checksum(x: Array) -> Array:
    words = _words(x)
    place = jnp.zeros(words[0].shape, jnp.uint32)
    for axis, size in enumerate(place.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    axes = tuple(range(place.ndim))
    zero = jnp.uint32(0)
    parts = _hashed(place, words)
    # Both sums in one reduction take one loop and one all-reduce.
    return jnp.stack(lax.reduce(parts, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes))


_CHUNKS = (1 << 12, 1 << 16, 1 << 20)
"""The numbers of elements of compiled calls: few programs serve arrays of all lengths."""


def digest(x: Any) -> list[int]:
    """Return the two words of `checksum(x)` as integers.

    It is computed on the host if the whole array is available there, for any dtype and setting of
    `jax_enable_x64`; otherwise, if other processes hold shards, on the devices. Both results agree.

    Args:
        x: NumPy or JAX array, except PRNG keys.

    Returns:
        Two 32-bit integers.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.ops.checksums import digest
        >>> from nnopt_jax.ops.checksums import checksum
        >>> x = np.arange(6, dtype=np.float32)
        >>> digest(x) == checksum(x).tolist()
        True

    References:
        Appleby, MurmurHash3, https://github.com/aappleby/smhasher (fmix32).
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(checksum(x)).tolist()
    flat = np.asarray(x).ravel()
    sums = np.zeros(2, np.uint32)
    with on_host():
        for start in range(0, flat.size, _CHUNKS[-1]):
            words = _words(flat[start : start + _CHUNKS[-1]])
            count = len(words[0])
            room = next(size for size in _CHUNKS if count <= size)
            if count < room:
                words = [np.pad(word, (0, room - count)) for word in words]
            first = np.uint32(start % 2**32)
            sums += np.asarray(_chunk_sums(words, first, np.uint32(count)))
    return sums.tolist()


def digests(arrays: Sequence[Any]) -> list[list[int]]:
    """Return `digest` of each array, on all cores if the whole arrays are on the host.

    Args:
        arrays: NumPy or JAX arrays, except PRNG keys.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.ops.checksums import digest, digests
        >>> digests([np.arange(6)]) == [digest(np.arange(6))]
        True
    """
    if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in arrays):
        return [digest(x) for x in arrays]  # with all processes, in one order
    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, arrays))


@jax.jit
def _chunk_sums(words: list[Array], start: Array, count: Array) -> Array:
    """Return the checksum of the first `count` elements of a chunk that begins at `start`."""
    number = lax.iota(jnp.uint32, len(words[0]))
    parts = _hashed(number + start, words)
    return jnp.stack([jnp.where(number < count, x, 0).sum(dtype=jnp.uint32) for x in parts])


def _hashed(place: Array, words: list[Array]) -> tuple[Array, Array]:
    """Return the terms of both sums: the bits of each element, hashed with its position."""
    one, other = (
        functools.reduce(lambda hashed, word: _mix(word ^ hashed), words, _mix(place + seed))
        for seed in map(jnp.uint32, _SEEDS)
    )
    return one, other


def _words(x: Any) -> list[Any]:
    """Return the bits of each element as one uint32 array, or as two arrays for 64 bits."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    if x.dtype == bool:
        return [x.astype(np.uint32)]
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize == 1:
        return [x.astype(np.int32).astype(np.uint32)]  # including int2, int4 and others
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 8:
        x = x.astype(np.float32)
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    is_host = isinstance(x, np.ndarray)
    bits = x.view(unsigned) if is_host else lax.bitcast_convert_type(x, unsigned)
    if x.dtype.itemsize < 8:
        return [bits.astype(np.uint32)]
    return [(bits >> unsigned.type(shift)).astype(np.uint32) for shift in (0, 32)]


def _mix(h: Any) -> Any:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
