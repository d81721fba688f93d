"""Ranges of activations, gathered batch by batch."""

from __future__ import annotations

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.running_histogram import Range as Range, add_values, joined
from nnopt_jax.quantization.activations.activation_checks import floats, require_seen
from nnopt_jax.typing import ArrayLike


def observe(state: Range, x: ArrayLike) -> Range:
    """Adds a batch of activations to what was seen.

    Counts are exact up to 2**24 in a bin, and to one part in ten million beyond. The order of
    batches makes no difference to the bins. Split over the devices of a mesh, `x` may be observed
    as it lies (of an Explicit mesh, inside `jax.sharding.auto_axes`); inside `jax.shard_map`,
    observe each part and `merge_ranges`. `jax.vmap` gives a range for each index of an axis.

    Args:
        state: `Range.start()` for the first batch.
        x: float array of any shape; NaN and infinities are only counted. No gradient.

    Returns:
        The new state, of the same shapes and dtypes.

    Raises:
        ValueRangeError: `state` is no `Range`, or `x` holds no floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> batches = jnp.arange(12.0).reshape(3, 4)
        >>> seen, _ = jax.lax.scan(lambda s, x: (observe(s, x), None), Range.start(), batches)
        >>> print(seen.low, seen.high, seen.counts.sum())
        0.0 11.0 12.0

    References:
        PyTorch's HistogramObserver, which interpolates where it grows; this one never does.
    """
    require_seen("observe", state, Range, "observe")
    return add_values(state, floats("observe", x))


def merge_ranges(a: Range, b: Range) -> Range:
    """Joins what was seen in two places: as if one had seen it all.

    Args:
        a: one state.
        b: another, of as many bins.

    Returns:
        The joint state.

    Raises:
        ShapeError: the numbers of bins differ.

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = (observe(Range.start(), jnp.array([x])) for x in (-1.0, 5.0))
        >>> print(merge_ranges(one, other).counts.sum())
        2.0
    """
    if a.counts.shape != b.counts.shape:
        raise ShapeError(
            f"quantization.merge_ranges: {a.counts.size} bins and {b.counts.size}; start both "
            "with the same number"
        )
    return joined(a, b)
