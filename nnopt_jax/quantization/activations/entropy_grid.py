"""Static activation grids by relative entropy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.grid import grid_of_range
from nnopt_jax.quantization.activations.activation_checks import check_kind
from nnopt_jax.quantization.activations.observed_range import Range
from nnopt_jax.quantization.activations.static_grids import ActivationGrid, check, fold_histogram
from nnopt_jax.typing import Array


def kl_grid(state: Range, bits: int = 8, *, symmetric: bool = True) -> ActivationGrid:
    r"""Return the grid of least relative entropy, as in TensorRT's calibration.

    $$ T = \arg\min_i \sum_j p_j \log (p_j / q_j) $$

    `p` is the histogram of the first `i` bins of magnitudes, with the counts beyond added to the
    last bin. `q` is the same histogram without these counts, merged to `L = 2**(bits - 1)` levels
    (bin `j` to level `j L // i`), with each level distributed evenly over its nonempty bins. The
    bin at zero, which a ReLU fills and every grid represents exactly, gets the count of its
    neighbor.

    Args:
        state: the result of `update_range`.
        bits: 2 to 10 for 4096 bins.
        symmetric: whether codes are symmetric about zero; otherwise the grid spans the observed
            range, clipped to `-T` and `T`.

    Returns:
        The grid; its scale is 1 if only zeros were observed.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.quantization import Range, kl_grid, update_range
        >>> x = jax.random.normal(jax.random.key(0), (20000,)).at[0].set(30.0)
        >>> print(f"{127 * kl_grid(update_range(Range.start(), x)).scale:.1f}")
        3.6

    References:
        Migacz 2017, 8-bit Inference with TensorRT, GPU Technology Conference, slides 26 to 39.
    """
    check_kind("kl_grid", state, Range, "update_range")
    check("kl_grid", bits, symmetric, bins=state.counts.size)
    return _least_entropy(state, bits, symmetric)


@functools.partial(jax.jit, static_argnames=("bits", "symmetric"))
def _least_entropy(state: Range, bits: int, symmetric: bool) -> ActivationGrid:
    """Return the grid of least relative entropy, given settings that have been checked."""
    low, high = state.ends()
    counts = fold_histogram(state.counts)
    counts = counts.at[0].set(counts[1])
    levels = 2 ** (bits - 1)
    tried = jnp.arange(levels, counts.size + 1)
    losses = lax.map(lambda bins: _divergence(counts, bins, levels), tried)
    top = tried[jnp.argmin(losses)].astype(jnp.float32) * state.width
    return ActivationGrid(*grid_of_range(jnp.maximum(low, -top), jnp.minimum(high, top), bits,
                               symmetric=symmetric))  # fmt: skip


def _divergence(counts: Array, bins: Array, levels: int) -> Array:
    """Return the relative entropy between a clipped histogram and its quantized form."""
    index = jnp.arange(counts.size)
    inside = jnp.where(index < bins, counts, 0.0)
    beyond = jnp.sum(jnp.where(index < bins, 0.0, counts))
    p = inside + jnp.where(index == bins - 1, beyond, 0.0)
    level = jnp.minimum(index * levels // bins, levels - 1)
    full = (inside > 0).astype(jnp.float32)
    total, parts = (jax.ops.segment_sum(x, level, levels) for x in (inside, full))
    q = full * (total / jnp.maximum(parts, 1.0))[level]
    p, q = (x / jnp.maximum(jnp.sum(x), 1e-30) for x in (p, q))
    # Where `q` is 0 and `p` is not, quotient and divergence are infinite, as they should be.
    ratio = jnp.where(p > 0, p / q, 1.0)
    return jnp.sum(jnp.where(p > 0, p * jnp.log(ratio), 0.0))
