"""Means and variances of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import Statistic, rows_axis, zeros
from nnopt_jax.typing import Array, Shape


class Moments(NamedTuple):
    """Of each channel the mean and the variance (the mean squared distance from the mean).

    Args:
        count: float32, how many values each channel had; one number for a leaf or a layer.
        mean: float32.
        variance: float32; 0 before the first value.

    Example:
        >>> from nnopt_jax.trace import Moments
        >>> Moments(count=2.0, mean=0.5, variance=0.25).variance
        0.25
    """

    count: Array
    mean: Array
    variance: Array


class _Sums(NamedTuple):
    """Moments on their way: all arrays have the same rank, and `squares` are from the mean."""

    count: Array
    mean: Array
    squares: Array


def input_moments() -> Statistic:
    """`Moments` of each channel of a leaf's inputs; they broadcast to the leaf.

    Channels are the entries along the axes that are summed over; of convolutions those of images.
    Batches are joined as Chan et al. do, without a second pass and without cancellation.

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
    """`Moments` of each channel of the products of a leaf, before anything is added to them.

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
    """Of values along one axis, in two passes."""
    ones = _ones(x.shape, axis)
    valid = use.valid()
    if valid is None:
        count = jnp.full(ones, x.shape[axis], jnp.float32)
        mean = x.sum(axis) / max(x.shape[axis], 1)
    else:
        count = valid.sum(-1, dtype=jnp.float32).reshape(ones)
        mean = use.masked(x, 0.0).sum(axis) / jnp.maximum(count, 1.0)
    squares = use.masked(jnp.square(x - jnp.expand_dims(mean, axis)), 0.0)
    return _Sums(count, mean, squares.sum(axis))


def _ones(shape: Shape, axis: int) -> Shape:
    """The batch as it is, one entry for all else: groups have the same counts."""
    return (*shape[:axis], *(1,) * (len(shape) - axis - 1))


def _join(a: _Sums, b: _Sums) -> _Sums:
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    apart = b.mean - a.mean
    squares = a.squares + b.squares + jnp.square(apart) * (a.count * share)
    return _Sums(count, a.mean + apart * share, squares)


def _moments(state: _Sums, lay: LeafLayout, place: Callable[[Array], Array]) -> Moments:
    count = jnp.maximum(state.count, 1.0)
    one = state.count.reshape(*state.count.shape[: len(lay.batch)], -1)[..., 0]
    return Moments(lay.leaf(one), place(state.mean), place(state.squares / count))
