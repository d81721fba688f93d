"""Checksums of arrays that do not depend on how they are sharded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def checksum(x: ArrayLike) -> Array:
    """Digests the bits of an array and where they lie.

    `sum_i mix(bits[i] ^ mix(i + seed)) mod 2**32` for two seeds, with `mix` the finalizer of
    MurmurHash3. Sums have no order, so the result is the same on every mesh, for one small
    all-reduce. Shape and dtype are not part of it. It guards against damage, not against malice.

    Args:
        x: array of any shape and dtype, sub-byte integers, bool and typed PRNG keys included.

    Returns:
        uint32 of shape `(2,)`.

    Example:
        >>> import numpy as np
        >>> x = np.arange(6, dtype=np.float32)
        >>> print(checksum(x).tolist() == checksum(x[::-1]).tolist())
        False

    Source: Appleby, MurmurHash3, https://github.com/aappleby/smhasher (fmix32).
    """
    return _checksum(jnp.asarray(x))


@jax.jit
def _checksum(x: Array) -> Array:
    words = _words(x)
    place = jnp.zeros(words[0].shape, jnp.uint32)
    for axis, size in enumerate(place.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    sums = []
    for seed in _SEEDS:
        hashed = _mix(place + jnp.uint32(seed))
        for word in words:
            hashed = _mix(word ^ hashed)
        sums.append(hashed)
    axes = tuple(range(place.ndim))
    zero = jnp.uint32(0)
    # Both sums in one reduction: one loop, one all-reduce.
    return jnp.stack(
        lax.reduce(tuple(sums), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
    )


def _words(x: Array) -> list[Array]:
    """Gives the bits of each element as one uint32 array, or two for 64 bits."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    if x.dtype == bool:
        return [x.astype(jnp.uint32)]
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize == 1:
        return [x.astype(jnp.int32).astype(jnp.uint32)]  # int2, int4 and the like among them
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 8:
        x = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    if x.dtype.itemsize < 8:
        return [bits.astype(jnp.uint32)]
    return [(bits >> shift).astype(jnp.uint32) for shift in (0, 32)]


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
