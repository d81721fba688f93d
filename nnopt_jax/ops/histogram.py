"""Histograms whose bins are robust to outliers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

_ONE = 0x3F800000  # the bits of 1.0
_LARGEST = 0x7F7FFFFF  # the bits of the largest float
_OCTAVE = 2.0**23  # the bits from one power of two to the next


def compand(y: Array) -> Array:
    """Map numbers to a scale that is linear up to 2 and logarithmic beyond.

    The result is `sign(y) * g(|y|)`, where `g(a) = a` up to 1, and above it 1 plus the distance
    between the float bits of `a` and 1, in units of an octave. The slope is 1 up to 2, then 1/2,
    1/4, ...

    Args:
        y: float32 of any shape; infinities are allowed.

    Returns:
        float32 from -129 to 129, strictly monotone in `y` up to rounding.

    Example:
        >>> import numpy as np
        >>> print(compand(np.array([-0.5, 1.5, 2.0, 3.0, 4.0], np.float32)))
        [-0.5  1.5  2.   2.5  3. ]
    """
    size = jnp.abs(y)
    octaves = (lax.bitcast_convert_type(size, jnp.int32) - _ONE).astype(jnp.float32) / _OCTAVE
    mapped = jnp.where(size < 1, size, 1 + octaves)
    return jnp.where(y < 0, -mapped, mapped)


def uncompand(u: Array) -> Array:
    """Map companded numbers back, up to rounding; the inverse of `compand`.

    Args:
        u: float32 from -129 to 129.

    Returns:
        float32.

    Example:
        >>> import numpy as np
        >>> print(uncompand(np.array([-0.5, 1.5, 2.5, 3.0], np.float32)))
        [-0.5  1.5  3.   4. ]
    """
    size = jnp.abs(u)
    bits = _ONE + (jnp.maximum(size - 1, 0) * _OCTAVE).astype(jnp.int32)
    bits = jnp.minimum(bits, _LARGEST)
    mapped = jnp.where(size < 1, size, lax.bitcast_convert_type(bits, jnp.float32))
    return jnp.where(u < 0, -mapped, mapped)


class Atoms(NamedTuple):
    """Weighted points in ascending order that represent many values.

    Attributes:
        place: the position of each atom, `(bins,)`; that of an empty atom lies within its bin.
        weight: the weight of each atom; 0 if empty.
        first: the place of the first nonempty atom from this one on, or infinity.
        last: the place of the last nonempty atom up to this one, or minus infinity.
    """

    place: Array
    weight: Array
    first: Array
    last: Array


def gather(v: Array, mask: Array | None, weights: Array | None, bins: int) -> tuple[Atoms, Array]:
    """Collect values in bins, each represented by one atom at the mean of its values.

    The bins are even on a companded scale, centered and scaled by a sample, so that even an outlier
    a million times larger than the rest takes up few bins.

    Args:
        v: float32, any shape; NaN and infinities are ignored.
        mask: bool of the same shape, False for entries to ignore; None to ignore none.
        weights: non-negative, of the same shape; None for 1.
        bins: the number of bins, a multiple of 256.

    Returns:
        The atoms of `v / scale`, and `scale`, a power of two that brings the values below 2 (4 for
        the largest floats). The atom of a bin of equal values is exactly that value.

    Example:
        >>> import jax.numpy as jnp
        >>> atoms, scale = gather(jnp.array([3.0, 1.0, 3.0]), None, None, bins=256)
        >>> full = atoms.weight > 0
        >>> print(atoms.place[full] * scale, atoms.weight[full])
        [1. 3.] [1. 2.]
    """
    center, spread = _center_and_spread(*_finite_sample(v, mask, weights))
    place, weight, scale = _bin_means(v, mask, weights, center, spread, bins)
    return _atoms(place, weight), scale


# These functions are calls inside of other programs, because copying their many steps for each leaf
# would take longer than tracing all the rest.
@functools.partial(jax.jit, static_argnums=5)
def _bin_means(
    v: Array, mask: Array | None, weights: Array | None, center: Array, spread: Array, bins: int
) -> tuple[Array, Array, Array]:
    """Return the mean and the weight of each bin, and the scale."""
    parts = (v, mask, weights)
    low, high = _extremes(*_weighted_values(parts))
    scale = _power_of_two(jnp.maximum(jnp.abs(low), jnp.abs(high)))
    # The compiler recomputes products with reciprocals where they are needed, but would store
    # quotients.
    shrink = 1 / scale
    low, high, center, spread = (x * shrink for x in (low, high, center, spread))
    spread = jnp.where(spread > 0, spread, jnp.where(high > low, high - low, 1.0))
    # Powers of two make products exact, so that a bin has the same middle everywhere.
    spread = _power_of_two(spread)
    narrow = 1 / spread
    start, stop = compand((low - center) * narrow), compand((high - center) * narrow)
    width = 2 * _power_of_two((stop - start) / (bins - 2))
    start = jnp.floor(start / width) * width

    def middle(index: Array) -> Array:
        return center + spread * uncompand(start + (index.astype(jnp.float32) + 0.5) * width)

    axis, count = _choose_slices(v.shape)
    cut = jax.tree.map(lambda x: _split(x, axis, count), parts)

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        some = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis + 1, False), cut)
        v, w = _weighted_values(some)
        v = v * shrink
        index = (compand((v - center) * narrow) - start) * (1 / width)
        index = jnp.clip(index, 0, bins - 1).astype(jnp.int32)
        # Summing distances from the middle keeps the mean within the bin, for any number of values.
        return sums[0].at[index].add(w), sums[1].at[index].add(w * (v - middle(index)))

    zero = jnp.zeros(bins, jnp.float32)
    weight, rest = lax.fori_loop(0, count, add, (zero, zero))
    place = middle(jnp.arange(bins)) + rest / jnp.where(weight > 0, weight, 1)
    return jnp.clip(place, low, high), weight, scale


def pool(
    arrays: Sequence[Array], masks: Sequence[Array | None], bins: int = 65536
) -> tuple[Array, Array]:
    """Concatenate arrays to one vector of weighted values, for a histogram of them all.

    Arrays with more entries than bins are replaced by their atoms, so that sharded arrays are not
    gathered.

    Args:
        arrays: float arrays of any shapes; NaN and infinities are ignored.
        masks: for each array a bool mask of its shape, False for entries to ignore, or None.
        bins: the number of bins for each large array, a multiple of 256.

    Returns:
        Values and weights, float32 vectors.

    Example:
        >>> import jax.numpy as jnp
        >>> pool([jnp.array([1.0, 5.0]), jnp.array([[2.0]])], [jnp.array([True, False]), None])
        (Array([1., 5., 2.], dtype=float32), Array([1., 0., 1.], dtype=float32))
    """
    values, weights = [], []
    for array, mask in zip(arrays, masks, strict=True):
        v = array.astype(jnp.float32)
        if v.size > bins:
            atoms, scale = gather(v, mask, None, bins)
            v, w = atoms.place * scale, atoms.weight
        else:
            w = jnp.ones(v.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
        values.append(v.ravel())
        weights.append(w.ravel())
    return jnp.concatenate(values), jnp.concatenate(weights)


@jax.jit
def _atoms(place: Array, weight: Array) -> Atoms:
    place = running(jnp.maximum, place, -jnp.inf)
    full = weight > 0
    first = running(jnp.minimum, jnp.where(full, place, jnp.inf)[::-1], jnp.inf)[::-1]
    last = running(jnp.maximum, jnp.where(full, place, -jnp.inf), -jnp.inf)
    return Atoms(place, weight, first, last)


def _weighted_values(parts: tuple[Array, Array | None, Array | None]) -> tuple[Array, Array]:
    """Return values and weights, both 0 for values that are masked or not finite."""
    v, mask, weights = parts
    valid = jnp.isfinite(v) if mask is None else jnp.isfinite(v) & mask
    w = jnp.float32(1) if weights is None else weights
    return jnp.where(valid, v, 0), jnp.where(valid, w, 0)


def _extremes(v: Array, w: Array) -> tuple[Array, Array]:
    """Return the least and the greatest of the values of positive weight; 0 without any."""
    low, high = lax.reduce(
        (jnp.where(w > 0, v, jnp.inf), jnp.where(w > 0, v, -jnp.inf)),
        (jnp.float32(jnp.inf), jnp.float32(-jnp.inf)),
        lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])),
        tuple(range(v.ndim)),
    )
    return jnp.where(high >= low, low, 0.0), jnp.where(high >= low, high, 0.0)


def _power_of_two(size: Array) -> Array:
    """Return the greatest power of two that is not above a number, so that scaling is exact."""
    bits = lax.bitcast_convert_type(size, jnp.int32) & 0x7F800000
    bits = jnp.minimum(bits, 0x7E800000)  # 2**126, whose reciprocal is a normal float
    return jnp.where(bits > 0, lax.bitcast_convert_type(bits, jnp.float32), 1.0)


def _choose_slices(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return an axis and a number of slices by which a large array is processed in less memory.

    The axis is split into (16 or fewer, slices, rest), so that up to 16 shards of it stay on their
    devices.
    """
    if math.prod(shape) < 1 << 20:
        return 0, 1
    counts = [math.gcd(size // math.gcd(size, 16), 16) for size in shape]
    axis = max(range(len(shape)), key=lambda i: (counts[i], -i))
    return axis, counts[axis]


def _split(x: Array, axis: int, count: int) -> Array:
    """Split an axis into three, of which the middle one numbers the slices."""
    if x.ndim == 0:
        return x.reshape(1, 1, 1)
    shards = math.gcd(x.shape[axis] // count, 16)
    return x.reshape(*x.shape[:axis], shards, count, -1, *x.shape[axis + 1 :])


def _subsample(x: Array) -> Array:
    """Return a few thousand evenly spaced entries of an array."""
    for axis in sorted(range(x.ndim), key=lambda axis: -x.shape[axis]):
        step = max(1, min(x.shape[axis], x.size // 4096))
        x = lax.slice_in_dim(x, 0, None, step, axis)
    return x


@jax.jit
def _finite_sample(v: Array, mask: Array | None, weights: Array | None) -> tuple[Array, Array]:
    """Return a sample of the unmasked, finite values, padded with infinity, and their number."""
    v, w = _weighted_values(jax.tree.map(_subsample, (v, mask, weights)))
    sample = jnp.where(w > 0, v, jnp.inf).ravel()
    # A power of two, so that the sort, which takes long to compile, has one size for most arrays.
    size = max(_SAMPLE, 1 << sample.size.bit_length())
    padding = (0, size - sample.size)
    return jnp.pad(sample, padding, constant_values=jnp.inf), jnp.sum(w > 0, dtype=jnp.int32)


@jax.jit
def _center_and_spread(sample: Array, count: Array) -> tuple[Array, Array]:
    """Return the median and a quantile range of a sample; 0 for an empty one."""
    v = jnp.sort(sample)
    low, middle, high = (
        v[(q * count.astype(jnp.float32)).astype(jnp.int32)] for q in (0.01, 0.5, 0.99)
    )
    known = count > 0
    return jnp.where(known, middle, 0), jnp.where(known, high / 4 - low / 4, 0)


_SAMPLE = 1 << 13
"""The number of values from which the center of a histogram is estimated, about."""
_ROWS = 256  # `running` reshapes a vector to rows, so bins are a multiple of this number
_T = TypeVar("_T")


def running(op: Callable[[_T, _T], _T], x: _T, unit: Any) -> _T:
    """Return the inclusive prefix scan of a vector under an associative function.

    `out[i] = x[0] op x[1] op ... op x[i]`. The vector is divided into rows, which are combined in
    parallel and then one after another. `jax.lax.associative_scan` returns the same, but unrolls a
    level for each halving and takes seconds to compile.

    Args:
        op: an associative, elementwise function.
        x: a vector, or a pytree of vectors, whose size is a multiple of 256.
        unit: the neutral element of `op`, a scalar or a pytree of scalars.

    Returns:
        A vector or pytree like `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(running(jnp.maximum, jnp.arange(256.0) % 7, -jnp.inf)[:9])
        [0. 1. 2. 3. 4. 5. 6. 6. 6.]
    """

    def along(total: _T, column: _T) -> tuple[_T, _T]:
        total = op(total, column)
        return total, total

    def down(total: _T, row: _T) -> tuple[_T, _T]:
        return op(total, row), total

    units = jax.tree.map(lambda u, v: jnp.full((_ROWS,), u, v.dtype), unit, x)
    columns = jax.tree.map(lambda v: v.reshape(_ROWS, -1).T, x)
    totals, inner = lax.scan(along, units, columns)
    _, before = lax.scan(down, jax.tree.map(lambda u: u[0], units), totals)
    out = op(jax.tree.map(lambda b: b[None], before), inner)
    return jax.tree.map(lambda v: v.T.ravel(), out)


def running_sum(x: Array) -> tuple[Array, Array]:
    """Return prefix sums as pairs of floats, whose differences lose no precision.

    Args:
        x: float32 vector whose size is a multiple of 256.

    Returns:
        `(high, low)`, each longer than `x` by one: `high + low` is the sum of the elements before,
        to some 48 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> high, low = running_sum(jnp.ones(256).at[0].set(1e9))
        >>> print((high[3] - high[1]) + (low[3] - low[1]))
        2.0

    References:
        Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        total = a[0] + b[0]
        part = total - a[0]
        error = (a[0] - (total - part)) + (b[0] - part)
        return total, error + (a[1] + b[1])

    sums = running(add, (x, jnp.zeros_like(x)), (0.0, 0.0))  # pyright: ignore
    return tuple(jnp.append(jnp.zeros(1, x.dtype), part) for part in sums)  # pyright: ignore
