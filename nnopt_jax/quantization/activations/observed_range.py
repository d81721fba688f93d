"""Activation ranges collected batch by batch."""

from __future__ import annotations

from nnopt_jax.errors import ShapeError
from nnopt_jax.ops.running_histogram import Range as Range, add_values, joined
from nnopt_jax.quantization.activations.activation_checks import check_kind, floats
from nnopt_jax.typing import ArrayLike


def update_range(state: Range, x: ArrayLike) -> Range:
    """Add a batch of activations to a range.

    Counts are exact up to 2**24 in a bin, and to one part in ten million beyond. The bins do not
    depend on the order of batches. `x` may be sharded over a mesh (with an Explicit mesh, inside
    `jax.sharding.auto_axes`); inside `jax.shard_map`, update a range for each shard and use
    `merge_ranges`. `jax.vmap` returns a range for each index of an axis.

    Args:
        state: `Range.start()` for the first batch.
        x: float array of any shape; NaN and infinities are only counted. It gets no gradient.

    Returns:
        The new state, with the same shapes and dtypes.

    Raises:
        ValueRangeError: `state` is not a `Range`, or `x` is not an array of floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> batches = jnp.arange(12.0).reshape(3, 4)
        >>> seen, _ = jax.lax.scan(lambda s, x: (update_range(s, x), None), Range.start(), batches)
        >>> print(seen.low, seen.high, seen.counts.sum())
        0.0 11.0 12.0

    References:
        PyTorch's HistogramObserver, which interpolates where it grows; this one never does.
    """
    check_kind("update_range", state, Range, "update_range")
    return add_values(state, floats("update_range", x))


def merge_ranges(a: Range, b: Range) -> Range:
    """Merge two ranges, as if one range had seen all batches.

    Args:
        a: a range.
        b: another range with equally many bins.

    Returns:
        The merged range.

    Raises:
        ShapeError: the numbers of bins differ.

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = (update_range(Range.start(), jnp.array([x])) for x in (-1.0, 5.0))
        >>> print(merge_ranges(one, other).counts.sum())
        2.0
    """
    if a.counts.shape != b.counts.shape:
        raise ShapeError(
            f"quantization.merge_ranges: {a.counts.size} bins and {b.counts.size}; start both "
            "with the same number"
        )
    return joined(a, b)
