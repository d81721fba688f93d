"""Statistics of the means and variances of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import Statistic, rows_axis, zeros
from nnopt_jax.typing import Array, Shape


class Moments(NamedTuple):
    """The mean and the (biased) variance of each channel.

    Args:
        count: float32, the number of values of each channel; one number for a leaf or a layer.
        mean: float32, the mean.
        variance: float32, the mean squared distance from the mean; 0 before the first value.

    Example:
        >>> from nnopt_jax.trace import Moments
        >>> Moments(count=2.0, mean=0.5, variance=0.25).variance
        0.25
    """

    count: Array
    mean: Array
    variance: Array


class _Sums(NamedTuple):
    """The state of moments: arrays of equal rank.

    The mean is `mean + tail`, and `squares` are sums of squared distances from it.
    """

    count: Array
    mean: Array
    tail: Array
    squares: Array


def input_moments() -> Statistic:
    """Statistic of the `Moments` of each input channel of a leaf; they broadcast to the leaf.

    Channels are the entries of the contracted axes; for convolutions, the channels of the image.
    Batches are merged by the method of Chan et al., without a second pass or cancellation.

    Example:
        >>> from nnopt_jax.trace import input_moments
        >>> input_moments().name
        'input_moments'

    References:
        Chan, Golub, LeVeque 1983, Algorithms for Computing the Sample Variance, equation 2.1.
    """

    def show(use: ProductUse) -> _Sums | None:
        x = use.inputs()
        return None if x is None else _sums(use, x, rows_axis(use))

    def finish(state: _Sums, lay: LeafLayout) -> Moments:
        return _moments(state, lay, lay.channel)

    labels = ("groups", "channels")
    return Statistic("input_moments", show, zeros, _join, finish, labels, of_inputs=True)


def output_moments() -> Statistic:
    """Statistic of the `Moments` of each output channel of a leaf, before a bias is added.

    They broadcast to the leaf.

    Example:
        >>> from nnopt_jax.trace import output_moments
        >>> output_moments().name
        'output_moments'
    """

    def show(use: ProductUse) -> _Sums | None:
        x = use.outputs()
        return None if x is None else _sums(use, x, len(use.batch))

    def finish(state: _Sums, lay: LeafLayout) -> Moments:
        return _moments(state, lay, lay.out)

    return Statistic("output_moments", show, zeros, _join, finish, ("outs",))


def _sums(use: ProductUse, x: Array, axis: int) -> _Sums:
    """Compute the moments of values on one axis.

    The mean of the distances from the mean is its tail: what rounding takes where values are far
    from zero.
    """
    valid = use.valid()
    ones = _ones(x.shape, axis)
    if valid is None:
        count = jnp.full(ones, x.shape[axis], jnp.float32)
    else:
        count = valid.sum(-1, dtype=jnp.float32).reshape(ones)
    total = jnp.maximum(count, 1.0)
    mean = use.masked(x, 0.0).sum(axis) / total
    apart = use.masked(x - jnp.expand_dims(mean, axis), 0.0)
    tail = apart.sum(axis) / total
    squares = use.masked(jnp.square(apart - jnp.expand_dims(tail, axis)), 0.0)
    return _Sums(count, mean, tail, squares.sum(axis))


def _ones(shape: Shape, axis: int) -> Shape:
    """Return the shape of counts: batch axes, then axes of size 1, since groups share counts."""
    return (*shape[:axis], *(1,) * (len(shape) - axis - 1))


def _join(a: _Sums, b: _Sums) -> _Sums:
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    apart, tails = b.mean - a.mean, b.tail - a.tail
    mean = a.mean + apart * share
    rounded = apart * share - (mean - a.mean)  # Kahan: what the sum above leaves out
    squares = a.squares + b.squares + jnp.square(apart + tails) * (a.count * share)
    return _Sums(count, mean, a.tail + tails * share + rounded, squares)


def _moments(state: _Sums, lay: LeafLayout, place: Callable[[Array], Array]) -> Moments:
    count = jnp.maximum(state.count, 1.0)
    one = state.count.reshape(*state.count.shape[: len(lay.batch)], -1)[..., 0]
    return Moments(lay.leaf(one), place(state.mean + state.tail), place(state.squares / count))
