"""The checksum of `nnopt_jax.ops.checksum` for arrays that the host sees, without a compile."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.ops.checksum import checksum

_SEEDS = (0x9E3779B9, 0x7F4A7C15)
_CHUNK = 1 << 16  # elements: all temporaries stay in cache


def digest(x: Any) -> list[int]:
    """The two words of `checksum(x)`.

    On the host where all of the array is there, whatever its dtype and the setting of
    `jax_enable_x64`; on the devices where other processes hold a part. Both agree.

    Args:
        x: NumPy or JAX array, no PRNG keys.

    Returns:
        Two integers of 32 bits.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.ops.host_checksum import digest
        >>> from nnopt_jax.ops.checksum import checksum
        >>> x = np.arange(6, dtype=np.float32)
        >>> digest(x) == checksum(x).tolist()
        True

    Source: Appleby, MurmurHash3, https://github.com/aappleby/smhasher (fmix32).
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(checksum(x)).tolist()
    flat = np.asarray(x).ravel()
    sums = [0, 0]
    for start in range(0, flat.size, _CHUNK):
        words = _words(flat[start : start + _CHUNK])
        place = np.arange(start, start + words[0].size, dtype=np.uint64).astype(np.uint32)
        for index, seed in enumerate(_SEEDS):
            hashed = _mix(place + np.uint32(seed))
            for word in words:
                hashed = _mix(word ^ hashed)
            sums[index] += int(hashed.sum(dtype=np.uint64))
    return [total % 2**32 for total in sums]


def _words(x: Any) -> list[np.ndarray]:
    """Gives the bits of each element as one uint32 array, or two for 64 bits."""
    if jnp.issubdtype(x.dtype, np.complexfloating):
        return _words(x.real.copy()) + _words(x.imag.copy())
    if x.dtype == bool or (jnp.issubdtype(x.dtype, np.integer) and x.dtype.itemsize == 1):
        return [x.astype(np.int32).view(np.uint32)]
    if jnp.issubdtype(x.dtype, np.floating) and jnp.finfo(x.dtype).bits < 8:
        x = x.astype(np.float32)
    bits = x.view(f"u{x.dtype.itemsize}")
    if x.dtype.itemsize < 8:
        return [bits.astype(np.uint32)]
    return [(bits >> np.uint64(shift)).astype(np.uint32) for shift in (0, 32)]


def _mix(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
