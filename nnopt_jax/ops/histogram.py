"""Histograms whose bins are robust to outliers."""

from __future__ import annotations

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

    `sign(y) * g(|y|)` with `g(a) = a` up to 1, and above it 1 plus the distance of the float bits
    of `a` from those of 1, an octave being 1. The slope is 1 up to 2, then 1/2, 1/4, ...

    Args:
        y: float32, any shape; infinities allowed.

    Returns:
        float32 within 129 of 0; strictly monotone in `y`, up to rounding.

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
    """Invert `compand`, up to rounding.

    Args:
        u: float32 within 129 of 0.

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
    """Weighted points in ascending order that stand for many values.

    Attributes:
        place: where each lies, `(bins,)`; an empty one within its bin.
        weight: how much each weighs, 0 where empty.
        first: place of the first atom here or above that is not empty, or infinity.
        last: place of the last atom here or below that is not empty, or minus infinity.
    """

    place: Array
    weight: Array
    first: Array
    last: Array


def gather(v: Array, mask: Array | None, weights: Array | None, bins: int) -> tuple[Atoms, Array]:
    """Gather values into bins, each represented by one atom at their mean.

    The bins are even on a companded scale that a sample centers and scales: an outlier, be it a
    million times larger than the rest, takes few of them.

    Args:
        v: float32, any shape; NaN and infinities are ignored.
        mask: bool of the same shape, False for entries to ignore; None: none of them.
        weights: non-negative, the same shape; None: all 1.
        bins: number of bins, which 256 divides.

    Returns:
        The atoms of `v / scale`, and `scale`, a power of two that brings the values below 2 (4 if
        they are of the largest). A bin of equal values lies exactly there.

    Example:
        >>> import jax.numpy as jnp
        >>> atoms, scale = gather(jnp.array([3.0, 1.0, 3.0]), None, None, bins=256)
        >>> full = atoms.weight > 0
        >>> print(atoms.place[full] * scale, atoms.weight[full])
        [1. 3.] [1. 2.]
    """
    parts = (v, mask, weights)
    low, high = _extremes(*_weighed(parts))
    scale = _power_of_two(jnp.maximum(jnp.abs(low), jnp.abs(high)))
    # Products with reciprocals are made anew where needed; quotients would be kept in memory.
    shrink = 1 / scale
    center, spread = _sample(*_weighed(jax.tree.map(_thinned, parts)))
    low, high, center, spread = (x * shrink for x in (low, high, center, spread))
    spread = jnp.where(spread > 0, spread, jnp.where(high > low, high - low, 1.0))
    # Powers of two: products are exact, so that the same bin has the same middle everywhere.
    spread = _power_of_two(spread)
    narrow = 1 / spread
    start, stop = compand((low - center) * narrow), compand((high - center) * narrow)
    width = 2 * _power_of_two((stop - start) / (bins - 2))
    start = jnp.floor(start / width) * width

    def middle(index: Array) -> Array:
        return center + spread * uncompand(start + (index.astype(jnp.float32) + 0.5) * width)

    axis, count = _cut(v.shape)
    cut = jax.tree.map(lambda x: _split(x, axis, count), parts)

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        some = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis + 1, False), cut)
        v, w = _weighed(some)
        v = v * shrink
        index = (compand((v - center) * narrow) - start) * (1 / width)
        index = jnp.clip(index, 0, bins - 1).astype(jnp.int32)
        # Distances from the middle keep the mean within the bin, however many values there are.
        return sums[0].at[index].add(w), sums[1].at[index].add(w * (v - middle(index)))

    zero = jnp.zeros(bins, jnp.float32)
    weight, rest = lax.fori_loop(0, count, add, (zero, zero))
    place = middle(jnp.arange(bins)) + rest / jnp.where(weight > 0, weight, 1)
    return _atoms(jnp.clip(place, low, high), weight), scale


def pool(
    arrays: Sequence[Array], masks: Sequence[Array | None], bins: int = 65536
) -> tuple[Array, Array]:
    """Join arrays to one vector of weighted values, for a histogram of all of them.

    Arrays of more entries than bins are replaced by their atoms, so that none is moved as a whole
    where it is split among devices.

    Args:
        arrays: float, any shapes; NaN and infinities are ignored.
        masks: for each, bool of its shape, False for entries to ignore, or None.
        bins: bins for each large array, which 256 divides.

    Returns:
        Values and weights, float32, one axis.

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


def _atoms(place: Array, weight: Array) -> Atoms:
    place = running(jnp.maximum, place, -jnp.inf)
    full = weight > 0
    first = running(jnp.minimum, jnp.where(full, place, jnp.inf)[::-1], jnp.inf)[::-1]
    last = running(jnp.maximum, jnp.where(full, place, -jnp.inf), -jnp.inf)
    return Atoms(place, weight, first, last)


def _weighed(parts: tuple[Array, Array | None, Array | None]) -> tuple[Array, Array]:
    """Return values and weights; both are 0 where a value does not count."""
    v, mask, weights = parts
    valid = jnp.isfinite(v) if mask is None else jnp.isfinite(v) & mask
    w = jnp.float32(1) if weights is None else weights
    return jnp.where(valid, v, 0), jnp.where(valid, w, 0)


def _extremes(v: Array, w: Array) -> tuple[Array, Array]:
    """Return the least and the greatest value that counts, in one pass; 0 without any."""
    low, high = lax.reduce(
        (jnp.where(w > 0, v, jnp.inf), jnp.where(w > 0, v, -jnp.inf)),
        (jnp.float32(jnp.inf), jnp.float32(-jnp.inf)),
        lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])),
        tuple(range(v.ndim)),
    )
    return jnp.where(high >= low, low, 0.0), jnp.where(high >= low, high, 0.0)


def _power_of_two(size: Array) -> Array:
    """Return the power of two below: it scales exactly, and squares of the result are safe."""
    bits = lax.bitcast_convert_type(size, jnp.int32) & 0x7F800000
    bits = jnp.minimum(bits, 0x7E800000)  # 2**126, whose reciprocal is normal
    return jnp.where(bits > 0, lax.bitcast_convert_type(bits, jnp.float32), 1.0)


def _cut(shape: tuple[int, ...]) -> tuple[int, int]:
    """Choose an axis and a number of slices for a large array, to need less memory at a time.

    An axis is split into (16 or fewer, slices, rest), so that up to 16 shards of it do not move.
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


def _thinned(x: Array) -> Array:
    """Return some thousand entries, evenly spaced."""
    for axis in sorted(range(x.ndim), key=lambda axis: -x.shape[axis]):
        step = max(1, min(x.shape[axis], x.size // 4096))
        x = lax.slice_in_dim(x, 0, None, step, axis)
    return x


def _sample(v: Array, w: Array) -> tuple[Array, Array]:
    """Return the median and a robust spread of values that count; 0 without any."""
    count = jnp.sum(w > 0, dtype=jnp.int32)
    v = jnp.sort(jnp.append(jnp.where(w > 0, v, jnp.inf), jnp.inf))
    low, middle, high = (
        v[(q * count.astype(jnp.float32)).astype(jnp.int32)] for q in (0.01, 0.5, 0.99)
    )
    known = count > 0
    return jnp.where(known, middle, 0), jnp.where(known, high / 4 - low / 4, 0)


_ROWS = 256
_T = TypeVar("_T")


def running(op: Callable[[_T, _T], _T], x: _T, unit: Any) -> _T:
    """Combine each element with all before it.

    `out[i] = x[0] op x[1] op ... op x[i]`. Rows of the vector advance side by side, then row after
    row. `jax.lax.associative_scan` gives the same, but unrolls a level for each halving and takes
    seconds to compile.

    Args:
        op: associative, elementwise.
        x: vector, or pytree of vectors, of a size that 256 divides.
        unit: scalar, or pytree of scalars, that `op` leaves alone.

    Returns:
        As `x`.

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
    """Sum all before each point in pairs of floats, whose differences lose nothing.

    Args:
        x: float32 vector of a size that 256 divides.

    Returns:
        `(high, low)`, each one longer than `x`: `high + low` is the sum of the elements before, to
        some 48 bits.

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
