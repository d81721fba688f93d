"""The statistics that can be measured at the uses of a leaf."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.running_histogram import Range, add_values, joined
from nnopt_jax.settings import Settings
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import LeafLayout, Statistic, filled
from nnopt_jax.typing import Array, Shape


class Moments(NamedTuple):
    """The mean and the (biased) variance of each channel.

    Args:
        count: float32, the number of values of each channel; one number for a leaf or a layer.
        mean: float32, the mean; its shape broadcasts to the leaf.
        variance: float32, the mean squared distance from the mean, of the same shape; 0 before the
            first value.

    Example:
        >>> from nnopt_jax.trace import Moments
        >>> Moments(count=2.0, mean=0.5, variance=0.25).variance
        0.25
    """

    count: Array
    mean: Array
    variance: Array


class _MomentSums(NamedTuple):
    """The state of the statistics of mean and variance: arrays of equal rank.

    The mean is `mean + tail`, and `squares` are sums of squared distances from it.
    """

    count: Array
    mean: Array
    tail: Array
    squares: Array


def input_moments() -> Statistic:
    """Return the statistic of the mean and variance of each input channel of a leaf.

    The result is a `Moments`, whose arrays broadcast to the leaf. Channels are the entries of the
    contracted axes; for convolutions, the channels of the image. Batches are merged by the method
    of Chan et al., without a second pass or cancellation.

    Example:
        >>> from nnopt_jax.trace import input_moments
        >>> input_moments().name
        'input_moments'

    References:
        Chan, Golub, LeVeque 1983, Algorithms for Computing the Sample Variance, equation 2.1.
    """

    def measure(use: ProductUse, x: Array) -> _MomentSums:
        return _moment_state(use, x, use.rows_axis)

    def finish(layout: LeafLayout, state: _MomentSums) -> Moments:
        return _moments(layout, state, layout.channel)

    labels = ("groups", "channels")
    return Statistic("input_moments", measure, finish, add=_add_moments, labels=labels)


def output_moments() -> Statistic:
    """Return the statistic of the mean and variance of each output channel, before a bias.

    The result is a `Moments`, whose arrays broadcast to the leaf.

    Example:
        >>> from nnopt_jax.trace import output_moments
        >>> output_moments().name
        'output_moments'
    """

    def measure(use: ProductUse, x: Array) -> _MomentSums:
        return _moment_state(use, x, len(use.batch))

    def finish(layout: LeafLayout, state: _MomentSums) -> Moments:
        return _moments(layout, state, layout.out)

    read, labels = ProductUse.outputs, ("outs",)
    return Statistic("output_moments", measure, finish, read, add=_add_moments, labels=labels)


def _moment_state(use: ProductUse, x: Array, axis: int) -> _MomentSums:
    """Compute the counts, means and sums of squares of values along one axis.

    The mean of the distances from the mean is its tail, which is the rounding error of the mean for
    values far from zero.
    """
    valid = use.valid()
    ones = _count_shape(x.shape, axis)
    if valid is None:
        count = jnp.full(ones, x.shape[axis], jnp.float32)
    else:
        count = valid.sum(-1, dtype=jnp.float32).reshape(ones)
    # An expert may get no rows.
    total = jnp.maximum(count, 1.0)
    mean = use.masked(x, 0.0).sum(axis) / total
    apart = use.masked(x - jnp.expand_dims(mean, axis), 0.0)
    tail = apart.sum(axis) / total
    squares = use.masked(jnp.square(apart - jnp.expand_dims(tail, axis)), 0.0)
    return _MomentSums(count, mean, tail, squares.sum(axis))


def _count_shape(shape: Shape, axis: int) -> Shape:
    """Return the shape of the counts of values: batch axes, then 1s, since groups share a count."""
    return (*shape[:axis], *(1,) * (len(shape) - axis - 1))


def _add_moments(a: _MomentSums, b: _MomentSums) -> _MomentSums:
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    apart, tails = b.mean - a.mean, b.tail - a.tail
    mean = a.mean + apart * share
    rounded = apart * share - (mean - a.mean)  # Kahan: the rounding error of the sum
    squares = a.squares + b.squares + jnp.square(apart + tails) * (a.count * share)
    return _MomentSums(count, mean, a.tail + tails * share + rounded, squares)


def _moments(layout: LeafLayout, state: _MomentSums, place: Callable[[Array], Array]) -> Moments:
    count = jnp.maximum(state.count, 1.0)
    one = state.count.reshape(*state.count.shape[: len(layout.batch)], -1)[..., 0]
    return Moments(layout.leaf(one), place(state.mean + state.tail), place(state.squares / count))


class Extremes(NamedTuple):
    """The least and the greatest value; infinity and minus infinity before the first value.

    Args:
        low: float32, the least value; one number for a leaf, or one for each of its layers.
        high: float32, the greatest value, of the same shape.

    Example:
        >>> from nnopt_jax.trace import Extremes
        >>> Extremes(low=-1.0, high=2.0).high
        2.0
    """

    low: Array
    high: Array


def input_absmax(*, channel: bool = False) -> Statistic:
    """Return the statistic of the greatest magnitude of the inputs of a leaf.

    Args:
        channel: whether to measure each input channel separately.

    Returns:
        The statistic, for `graph.observe`. Its result is one number for a leaf or for each of its
        layers; with `channel`, an array that broadcasts to the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.trace import input_absmax
        >>> params, batches = {"w": jnp.ones((2, 3))}, [jnp.array([[1.0, -4.0]])]
        >>> what = input_absmax(channel=True)
        >>> graph = nnopt.graph(lambda params, x: x @ params["w"], params, batches[0])
        >>> seen = graph.observe(params, batches, what)
        >>> print(seen["input_absmax"]["w"])
        [[1.]
         [4.]]
    """
    settings = Settings("input_absmax")
    settings.flag("channel", channel)
    settings.done()

    def measure(use: ProductUse, x: Array) -> Array:
        axes = use.rows_axis if channel else use.unbatched_axes
        return jnp.max(use.masked(jnp.abs(x), 0.0), axes, initial=0.0)

    # A single number has no channels that uses would have to share.
    finish, labels = LeafLayout.leaf, ()
    if channel:
        finish, labels = LeafLayout.channel, ("groups", "channels")
    settings = (("channel", channel),)
    return Statistic(
        "input_absmax", measure, finish, add=jnp.maximum, labels=labels, settings=settings
    )


def input_range() -> Statistic:
    """Return the statistic of the least and greatest input of a leaf, an `Extremes`.

    Example:
        >>> from nnopt_jax.trace import input_range
        >>> input_range().name
        'input_range'
    """

    def measure(use: ProductUse, x: Array) -> Extremes:
        return Extremes(
            jnp.min(use.masked(x, jnp.inf), use.unbatched_axes, initial=jnp.inf),
            jnp.max(use.masked(x, -jnp.inf), use.unbatched_axes, initial=-jnp.inf),
        )

    # Infinities are neutral in `min` and `max`.
    def start(shapes: Extremes) -> Extremes:
        return Extremes(filled(shapes.low, jnp.inf), filled(shapes.high, -jnp.inf))

    def add(a: Extremes, b: Extremes) -> Extremes:
        return Extremes(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    def finish(layout: LeafLayout, state: Extremes) -> Extremes:
        return Extremes(*map(layout.leaf, state))

    return Statistic("input_range", measure, finish, start=start, add=add)


def input_histogram(bins: int = 4096) -> Statistic:
    """Return the statistic of a histogram of inputs, which doubles its range as needed.

    Args:
        bins: a power of two from 256 to 65,536.

    Returns:
        The statistic. Its result is a `nnopt.quantization.Range`, for
        `nnopt.quantization.percentile_grid` and other grids; for scanned leaves it has a leading
        axis of layers.

    Raises:
        ValueRangeError: `bins` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params, batches = {"w": jnp.ones((2, 3))}, [jnp.array([[1.0, -4.0]])]
        >>> graph = nnopt.graph(lambda p, x: x @ p["w"], params, batches[0])
        >>> seen = graph.observe(params, batches, "input_histogram")
        >>> grid = nnopt.quantization.absmax_grid(seen["input_histogram"]["w"], bits=4)
        >>> print(f"{7 * grid.scale:.1f}")
        4.0
    """
    start = Range.start(bins)

    def measure(use: ProductUse, x: Array) -> Range:
        valid = use.valid()

        def add(x: Array) -> Range:
            return add_values(start, x)

        for _ in use.batch:
            add = jax.vmap(add)
        found = add(use.masked(x, jnp.nan))
        if valid is None:
            return found
        others = (~valid).sum(-1) * math.prod(x.shape[use.rows_axis + 1 :])
        return found._replace(ignored=found.ignored - others)  # masked NaN inputs

    def begin(shapes: Range) -> Range:
        return jax.tree.map(lambda x, s: jnp.broadcast_to(x, s.shape).copy(), start, shapes)

    def finish(layout: LeafLayout, state: Range) -> Range:
        return Range(*map(layout.order_batch, state))

    settings = (("bins", bins),)
    return Statistic("input_histogram", measure, finish, start=begin, add=joined, settings=settings)


def input_gram(block: int | None = None) -> Statistic:
    r"""Return the statistic of the Gram matrix `X^T X` of a leaf's inputs, over all rows.

    $$ G_{ij} = \sum_r x_{ri} x_{rj} $$

    `i` and `j` number the contracted entries, in the order of the leaf's own axes; for a
    convolution, these are the entries of a patch of the image. Products have full float32
    precision.

    Args:
        block: the size of the diagonal blocks to keep, for wide layers; it divides the number of
            contracted entries, or is larger. None for the whole matrix.

    Returns:
        The statistic. Its result is `(n, n)` for a leaf, or `(n / block, block, block)`, after
        axes for the layers of a scan and the groups of a grouped convolution.

    Raises:
        ValueRangeError: `block` is not a positive whole number.

    Example:
        >>> from nnopt_jax.trace import input_gram
        >>> input_gram(block=128).name
        'input_gram'

    References:
        Frantar et al. 2022, GPTQ, section 3 (the Hessian of a layer's squared error).
    """
    settings = Settings("input_gram")
    settings.integer("block", block, 1, none=True)
    settings.done()

    def measure(use: ProductUse, x: Array) -> Array:
        valid = use.valid()
        if valid is None:
            return _gram(x, block)
        # All entries of the batch have the same rows, which a loop over the entries does not copy.
        rows = x.reshape(-1, *x.shape[-2:])[0]
        each = lax.map(
            lambda own: _gram(jnp.where(own[:, None], rows, 0.0), block),
            valid.reshape(-1, valid.shape[-1]),
        )
        return each.reshape(*valid.shape[:-1], *each.shape[1:])

    def check(state: Array) -> str:
        n = state.shape[-1]
        return "" if block is None or n <= block else f"block {block} does not divide {n}"

    return Statistic(
        "input_gram", measure, LeafLayout.order_batch, ProductUse.patches, check=check,
        labels=("groups", "channels", "contracted"), settings=(("block", block),),
    )  # fmt: skip


def input_count() -> Statistic:
    """Return the statistic of the number of lookups of each row of an embedding.

    The float32 counts broadcast to the leaf, and are exact up to 2**24 for a row.

    Example:
        >>> from nnopt_jax.trace import input_count
        >>> input_count().name
        'input_count'
    """
    read, labels = ProductUse.counts, ("channels",)
    return Statistic("input_count", lambda _, x: x, LeafLayout.channel, read, labels=labels)


def rows() -> Statistic:
    """Return the statistic of the number of input rows of a leaf, or of its lookups."""

    def measure(use: ProductUse, _: Any) -> Array:
        counts, valid = use.counts(), use.valid()
        if counts is not None:
            return counts.sum()
        if valid is not None:
            return valid.sum(-1, dtype=jnp.float32)
        shape = jax.eval_shape(use.inputs).shape
        return jnp.full(shape[: len(use.batch)], shape[use.rows_axis], "float32")

    return Statistic("rows", measure, LeafLayout.leaf, lambda use: use)


STATISTICS: Mapping[str, Callable[[], Statistic]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            input_absmax, input_range, input_moments, input_histogram, input_gram, input_count,
            output_moments,
        )
    }
)  # fmt: skip
"""The statistics of products and lookups, by name."""


def _gram(x: Array, block: int | None) -> Array:
    """Return the Gram matrix of the last axis, or its diagonal blocks."""
    if block is not None and x.shape[-1] % min(block, x.shape[-1]) == 0:
        x = x.reshape(*x.shape[:-1], -1, min(block, x.shape[-1]))
        x = jnp.moveaxis(x, -2, -3)
    batch = tuple(range(x.ndim - 2))
    # By default, TPUs and some GPUs multiply float32 arrays in fewer bits.
    numbers = ((x.ndim - 2,), (x.ndim - 2,)), (batch, batch)
    return lax.dot_general(x, x, numbers, precision=lax.Precision.HIGHEST)
