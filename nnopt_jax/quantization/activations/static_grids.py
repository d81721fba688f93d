"""Static activation grids: from observed ranges to scale and zero point."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.grid import dequantize, grid_of_range, integer_range, quantize
from nnopt_jax.quantization.activations.activation_checks import check_kind
from nnopt_jax.quantization.activations.observed_range import Range
from nnopt_jax.settings import Settings
from nnopt_jax.typing import Array

_SHARES = 128  # fractions to try for a symmetric range; for other ranges, 32 for each end


class ActivationGrid(NamedTuple):
    """A uniform grid for `fake_quant(x, *grid)`.

    Args:
        scale: float32, positive.
        zero: an integer held in float32; None if the grid is symmetric.

    Example:
        >>> from nnopt_jax.quantization import ActivationGrid, fake_quant
        >>> print(fake_quant(1.2, *ActivationGrid(0.5, None)))
        1.0
    """

    scale: Array
    zero: Array | None


def absmax_grid(state: Range, bits: int = 8, *, symmetric: bool = True) -> ActivationGrid:
    """Return the grid that spans all observed values.

    Args:
        state: the result of `update_range`.
        bits: 2 to 16.
        symmetric: whether codes are symmetric about zero; otherwise the grid has a zero point,
            which suits activations after a ReLU, whose range is positive.

    Returns:
        The grid; its scale is 1 if only zeros were observed.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.quantization import Range, absmax_grid, update_range
        >>> seen = update_range(Range.start(), jnp.array([0.0, 2.55]))
        >>> grid = absmax_grid(seen, symmetric=False)
        >>> print(grid.scale.round(4), grid.zero)
        0.01 -128.0

    References:
        Krishnamoorthi 2018, Quantizing Deep Convolutional Networks, section 3.1.
    """
    check_kind("absmax_grid", state, Range, "update_range")
    check("absmax_grid", bits, symmetric)
    return ActivationGrid(*grid_of_range(*state.ends(), bits, symmetric=symmetric))


def percentile_grid(
    state: Range, percent: float = 99.9, bits: int = 8, *, symmetric: bool = True
) -> ActivationGrid:
    """Return the grid that spans a percentage of the observed values.

    The grid spans the least range, in whole bins of the histogram, that at most `round(n * (1 -
    percent / 100))` of the `n` values exceed: by magnitude if symmetric, else at each end.

    Args:
        state: the result of `update_range`.
        percent: the percentage, 50 to 100.
        bits: 2 to 16.
        symmetric: whether codes are symmetric about zero.

    Returns:
        The grid; its scale is 1 if only zeros were observed.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.quantization import Range, update_range, percentile_grid
        >>> seen = update_range(Range.start(), jnp.append(jnp.linspace(0.0, 1.0, 999), 8.0))
        >>> print(f"{127 * percentile_grid(seen).scale:.2f}")
        1.01

    References:
        Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 3.3.
    """
    check_kind("percentile_grid", state, Range, "update_range")
    check("percentile_grid", bits, symmetric, percent)
    low, high = state.ends()
    beyond = jnp.round(jnp.float32((100 - percent) / 100) * jnp.sum(state.counts))
    if symmetric:
        top = _edge(fold_histogram(state.counts), beyond) * state.width
        top = jnp.minimum(top, jnp.maximum(-low, high))
        return ActivationGrid(*grid_of_range(-top, top, bits, symmetric=True))
    half = state.counts.size // 2
    high = jnp.minimum(high, (_edge(state.counts, beyond) - half) * state.width)
    low = jnp.maximum(low, -(_edge(state.counts[::-1], beyond) - half) * state.width)
    return ActivationGrid(*grid_of_range(low, high, bits, symmetric=False))


def mse_grid(state: Range, bits: int = 8, *, symmetric: bool = True) -> ActivationGrid:
    """Return the grid of least squared error on the histogram of observed values.

    Candidates are 128 fractions of the extreme value or, if not symmetric, 32 fractions of each
    end.

    Args:
        state: the result of `update_range`.
        bits: 2 to 10 for 4096 bins, because a histogram cannot resolve steps finer than a few of
            its bins.
        symmetric: whether codes are symmetric about zero.

    Returns:
        The grid; its scale is 1 if only zeros were observed.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.quantization import Range, mse_grid, update_range
        >>> seen = update_range(Range.start(), jnp.append(jnp.linspace(-1.0, 1.0, 999), 8.0))
        >>> print(f"{7 * mse_grid(seen, bits=4).scale:.1f}")
        3.1

    References:
        Wu et al. 2020, section 3.3; PyTorch's HistogramObserver.
    """
    check_kind("mse_grid", state, Range, "update_range")
    check("mse_grid", bits, symmetric, bins=state.counts.size)
    return _least_squares(state, bits, symmetric)


@functools.partial(jax.jit, static_argnames=("bits", "symmetric"))
def _least_squares(state: Range, bits: int, symmetric: bool) -> ActivationGrid:
    """Return the grid of least squared error, given settings that have been checked."""
    low, high = state.ends()
    half = state.counts.size // 2
    centers = (jnp.arange(state.counts.size, dtype=jnp.float32) - half + 0.5) * state.width
    centers = jnp.clip(centers, low, high)
    ends = integer_range(bits, symmetric=symmetric)
    weights = state.counts / jnp.maximum(jnp.sum(state.counts), 1.0)

    def attempt(shares: Array) -> Array:
        grid = grid_of_range(low * shares[0], high * shares[1], bits, symmetric=symmetric)
        scale, zero = (None if x is None else x.reshape(1) for x in grid)
        shown = dequantize(quantize(centers, scale, zero, *ends), scale, zero)  # pyright: ignore
        return jnp.sum(weights * ((centers - shown) / state.width) ** 2)

    shares = _shares(symmetric)
    best = shares[jnp.argmin(lax.map(attempt, shares))]
    return ActivationGrid(*grid_of_range(low * best[0], high * best[1], bits, symmetric=symmetric))


def fold_histogram(counts: Array) -> Array:
    """Fold a histogram of signed values to one of magnitudes.

    Example:
        >>> import jax.numpy as jnp
        >>> print(fold_histogram(jnp.array([1.0, 2.0, 3.0, 4.0])))
        [5. 5.]
    """
    half = counts.size // 2
    return counts[half:] + counts[:half][::-1]


def check(
    who: str, bits: int, symmetric: bool, percent: float = 100, bins: int | None = None
) -> None:
    """Raise all problems with the settings of a grid as one error.

    Example:
        >>> check("demo", 17, True)
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: quantization.demo: bits=17 is not a whole number from 2 to 16.
    """  # noqa: E501 - printed by the doctest
    settings = Settings(f"quantization.{who}")
    # Each step must span four bins, or the histogram is too coarse to distinguish errors.
    settings.integer("bits", bits, 2, 16 if bins is None else bins.bit_length() - 3)
    settings.flag("symmetric", symmetric)
    settings.number("percent", percent, 50, 100)
    settings.done()


def _shares(symmetric: bool) -> Array:
    """Return the candidate fractions of the least and greatest value, the widest range first."""
    if symmetric:
        one = 1 - jnp.arange(_SHARES, dtype=jnp.float32) / _SHARES
        return jnp.stack([one, one], axis=1)
    one = 1 - jnp.arange(32, dtype=jnp.float32) / 32
    return jnp.stack([part.ravel() for part in jnp.meshgrid(one, one, indexing="ij")], axis=1)


def _edge(counts: Array, beyond: Array) -> Array:
    """Return the first bin edge above which at most `beyond` counts lie."""
    above = jnp.cumsum(counts[::-1])[::-1]
    return jnp.sum(above > beyond, dtype=jnp.int32).astype(jnp.float32)
