"""The statistics that can be measured at the uses of a leaf."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.running_histogram import Range, add_values, joined
from nnopt_jax.settings import Settings
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.moment_statistics import input_moments, output_moments
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import Statistic, all_axes, filled, rows_axis, zeros
from nnopt_jax.typing import Array


class Extremes(NamedTuple):
    """The least and the greatest value; infinity and minus infinity before the first value.

    Example:
        >>> from nnopt_jax.trace import Extremes
        >>> Extremes(low=-1.0, high=2.0).high
        2.0
    """

    low: Array
    high: Array


def input_absmax(*, channel: bool = False) -> Statistic:
    """Statistic of the greatest magnitude of the inputs of a leaf.

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

    def show(use: ProductUse) -> Array | None:
        x = use.inputs()
        if x is None:
            return None
        x = use.masked(jnp.abs(x), 0.0)
        return jnp.max(x, rows_axis(use) if channel else all_axes(use), initial=0.0)

    return Statistic(
        "input_absmax",
        show,
        lambda shapes: filled(shapes, 0.0),
        jnp.maximum,
        lambda state, lay: lay.channel(state) if channel else lay.leaf(state),
        ("groups", "channels") if channel else (),
        of_inputs=True,
    )


def input_range() -> Statistic:
    """Statistic of the least and greatest input of a leaf: `Extremes`, shaped as `input_absmax`.

    Example:
        >>> from nnopt_jax.trace import input_range
        >>> input_range().name
        'input_range'
    """

    def show(use: ProductUse) -> Extremes | None:
        x, axes = use.inputs(), all_axes(use)
        if x is None:
            return None
        return Extremes(
            jnp.min(use.masked(x, jnp.inf), axes, initial=jnp.inf),
            jnp.max(use.masked(x, -jnp.inf), axes, initial=-jnp.inf),
        )

    return Statistic(
        "input_range",
        show,
        lambda shapes: Extremes(filled(shapes.low, jnp.inf), filled(shapes.high, -jnp.inf)),
        lambda a, b: Extremes(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)),
        lambda state, lay: Extremes(*map(lay.leaf, state)),
        of_inputs=True,
    )


def input_histogram(bins: int = 4096) -> Statistic:
    """Statistic of a histogram that doubles its range as needed: `nnopt.quantization.Range`.

    Args:
        bins: a power of two from 256 to 65,536.

    Returns:
        The statistic. Its result is an argument of `nnopt.quantization.percentile_grid` and other
        grids; for scanned leaves it has a leading axis of layers.

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

    def show(use: ProductUse) -> Range | None:
        x, valid = use.inputs(), use.valid()
        if x is None:
            return None

        def add(x: Array) -> Range:
            return add_values(start, x)

        for _ in use.batch:
            add = jax.vmap(add)
        found = add(use.masked(x, jnp.nan))
        if valid is None:
            return found
        others = (~valid).sum(-1) * math.prod(x.shape[rows_axis(use) + 1 :])
        return found._replace(ignored=found.ignored - others)  # masked entries are not NaN inputs

    def begin(shapes: Range) -> Range:
        return jax.tree.map(lambda x, s: jnp.broadcast_to(x, s.shape).copy(), start, shapes)

    def finish(state: Range, lay: LeafLayout) -> Range:
        return Range(*map(lay.apart, state))

    return Statistic("input_histogram", show, begin, joined, finish, of_inputs=True)


def input_gram(block: int | None = None) -> Statistic:
    r"""Statistic of the Gram matrix of a leaf's inputs: `X^T X` over all rows, float32.

    .. math:: G_{ij} = \sum_r x_{ri} x_{rj}

    `i` and `j` number the contracted entries, in the order of the leaf's own axes; for a
    convolution these are a patch of the image. Products have full float32 precision.

    Args:
        block: for wide layers, keeps only blocks of this size on the diagonal; it divides the
            number of contracted entries, or is larger.

    Returns:
        The statistic. Its result is `(n, n)` for a leaf, or `(n / block, block, block)`, after
        axes for the layers of a scan and the groups of a grouped convolution.

    Raises:
        ValueRangeError: `block` is not a whole number above 0.

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

    def show(use: ProductUse) -> Array | None:
        x, valid = use.patches(), use.valid()
        if x is None or valid is None:
            return None if x is None else _gram(x, block)
        # All entries of the batch have the same rows; a loop over them does not copy the rows.
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
        "input_gram", show, zeros, jnp.add, lambda state, lay: lay.apart(state),
        ("groups", "channels", "contracted"), check, of_inputs=True,
    )  # fmt: skip


def input_count() -> Statistic:
    """Statistic of the lookups of each row of an embedding, float32; it broadcasts to the leaf.

    Counts are exact up to 2**24 for a row.

    Example:
        >>> from nnopt_jax.trace import input_count
        >>> input_count().name
        'input_count'
    """

    def show(use: ProductUse) -> Array | None:
        return use.counts()

    def finish(state: Array, lay: LeafLayout) -> Array:
        return lay.channel(state)

    labels = ("channels",)
    return Statistic("input_count", show, zeros, jnp.add, finish, labels, of_inputs=True)


def rows() -> Statistic:
    """Statistic of the number of rows of inputs of a leaf, or of its lookups."""

    def show(use: ProductUse) -> Array:
        counts, valid = use.counts(), use.valid()
        if counts is not None:
            return counts.sum()
        if valid is not None:
            return valid.sum(-1, dtype=jnp.float32)
        shape = jax.eval_shape(use.inputs).shape
        return jnp.full(shape[: len(use.batch)], shape[len(use.batch) + len(use.groups)], "float32")

    finish = lambda state, lay: lay.leaf(state)  # noqa: E731 - one line says it
    return Statistic("rows", show, zeros, jnp.add, finish, of_inputs=True)


STATISTICS: Mapping[str, Callable[[], Statistic]] = MappingProxyType(
    {
        "input_absmax": input_absmax,
        "input_range": input_range,
        "input_moments": input_moments,
        "input_histogram": input_histogram,
        "input_gram": input_gram,
        "input_count": input_count,
        "output_moments": output_moments,
    }
)
"""The statistics of products and lookups, by name."""


def _gram(x: Array, block: int | None) -> Array:
    """Return the products of columns, or those within blocks of columns."""
    if block is not None and x.shape[-1] % min(block, x.shape[-1]) == 0:
        x = x.reshape(*x.shape[:-1], -1, min(block, x.shape[-1]))
        x = jnp.moveaxis(x, -2, -3)
    batch = tuple(range(x.ndim - 2))
    numbers = ((x.ndim - 2,), (x.ndim - 2,)), (batch, batch)
    return lax.dot_general(x, x, numbers, precision=lax.Precision.HIGHEST)
