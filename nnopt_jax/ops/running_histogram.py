"""Histograms of observed activations, which grow with exact counts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.columns import brief_fields
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array, ArrayLike

_LEAST = -100  # exponent of the narrowest histogram


class Range(NamedTuple):
    """The observed range of an activation, a small pytree for use in jit, scan and vmap.

    The histogram spans `-2**exponent` to `2**exponent`. For values outside, it doubles by merging
    pairs of bins, so that a count never moves to a bin that does not contain its value.

    Args:
        counts: float32 `(bins,)`, from the least values to the greatest.
        exponent: int32, the exponent of the span.
        low: float32, the least observed value; infinity before the first.
        high: float32, the greatest observed value; minus infinity before the first.
        ignored: float32, the number of NaN and infinite values, which are not counted elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = add_values(Range.start(), jnp.array([-0.5, 3.0, jnp.nan]))
        >>> print(seen.low, seen.high, seen.exponent, seen.ignored)
        -0.5 3.0 2 1.0
    """

    counts: Array
    exponent: Array
    low: Array
    high: Array
    ignored: Array

    __repr__ = brief_fields

    @classmethod
    def start(cls, bins: int = 4096) -> Range:
        """Return an empty range, for which no value has been observed.

        Args:
            bins: a power of two from 256 to 65,536.

        Raises:
            ValueRangeError: `bins` is not such a number.
        """
        settings = Settings("quantization.Range")
        settings.integer("bins", bins, 256, 65536)
        if isinstance(bins, int) and bins & (bins - 1):
            settings.wrong("bins", bins, "is not a power of two.")
        settings.done()
        return cls(
            jnp.zeros(bins, jnp.float32),
            jnp.int32(_LEAST),
            jnp.float32(jnp.inf),
            jnp.float32(-jnp.inf),
            jnp.float32(0),
        )

    @property
    def width(self) -> Array:
        """The width of a bin, a power of two."""
        return _power_of_two(self.exponent + 1 - (self.counts.size.bit_length() - 1))

    def ends(self) -> tuple[Array, Array]:
        """Return the least and the greatest observed value; 0 for an empty range."""
        some = self.low <= self.high
        return jnp.where(some, self.low, 0.0), jnp.where(some, self.high, 0.0)


def add_values(state: Range, x: Array) -> Range:
    """Add values to an observed range.

    Args:
        state: the range so far.
        x: float32 array of any shape; NaN and infinities are only counted. It gets no gradient.

    Returns:
        The new range, with the same shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = add_values(Range.start(), jnp.array([1.0, 5.0]))
        >>> print(seen.low, seen.high, seen.counts.sum())
        1.0 5.0 2.0
    """
    v = lax.stop_gradient(x).astype(jnp.float32)
    v = jnp.where(jnp.abs(v) < jnp.finfo(jnp.float32).tiny, 0.0, v)  # most devices flush subnormals
    finite = jnp.isfinite(v)
    low = jnp.min(v, initial=jnp.inf, where=finite)
    high = jnp.max(v, initial=-jnp.inf, where=finite)
    top = jnp.where(low <= high, jnp.maximum(jnp.abs(low), jnp.abs(high)), 0.0)
    bins = state.counts.size
    exponent = jnp.maximum(state.exponent, _exponent(top))
    per_width = _power_of_two(bins.bit_length() - 2 - exponent)
    index = jnp.floor(jnp.where(finite, v, 0.0) * per_width).astype(jnp.int32)
    # A product that is too small becomes 0, which must not lose the sign.
    index = jnp.where(v < 0, jnp.minimum(index, -1), index) + bins // 2
    batch = jnp.zeros(bins, jnp.int32).at[index].add(finite.astype(jnp.int32))
    bad = jnp.sum(~finite, dtype=jnp.int32).astype(jnp.float32)
    fresh = Range(batch.astype(jnp.float32), exponent, low, high, bad)
    return joined(state, fresh)


def joined(a: Range, b: Range) -> Range:
    """Return the range that observing the values of both ranges would give.

    Args:
        a: a range, or a stack of ranges with the same leading axes on all arrays.
        b: another range of the same shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = (add_values(Range.start(), jnp.array([x])) for x in (-1.0, 5.0))
        >>> print(joined(one, other).counts.sum())
        2.0
    """
    if a.exponent.ndim:
        return jax.vmap(joined)(a, b)
    exponent = jnp.maximum(a.exponent, b.exponent)
    return Range(
        _double(a.counts, exponent - a.exponent) + _double(b.counts, exponent - b.exponent),
        exponent,
        jnp.minimum(a.low, b.low),
        jnp.maximum(a.high, b.high),
        a.ignored + b.ignored,
    )


def _double(counts: Array, times: Array) -> Array:
    """Merge pairs of bins, from the middle outwards, a given number of times."""
    half = counts.size // 2
    # The shift rounds down for either sign, so that bins stay on their side of zero.
    index = half + ((jnp.arange(counts.size) - half) >> jnp.minimum(times, 31))
    return jnp.zeros_like(counts).at[index].add(counts)


def _exponent(top: Array) -> Array:
    """Return the least `e` with `top < 2**e`, at least the exponent of the narrowest histogram."""
    bits = lax.bitcast_convert_type(top, jnp.int32)
    return jnp.maximum((bits >> 23) - 126, _LEAST)


def _power_of_two(exponent: ArrayLike) -> Array:
    """Return `2**exponent`, exactly."""
    return jax.lax.bitcast_convert_type((jnp.asarray(exponent, jnp.int32) + 127) << 23, jnp.float32)
