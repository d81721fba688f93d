"""What can be measured where a leaf is used: what one use shows, and how two are joined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nnopt_jax.ops.growing import Range, add_values, joined
from nnopt_jax.settings import Settings
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What is measured, as pure functions of states; a state is a pytree of arrays.

    Args:
        name: what it is called.
        show: the state of one use, its arrays with the axes (batch, ...); None where a use has
            nothing of the kind.
        start: the state before the first, of shapes: what adding changes nothing.
        add: joins two states.
        finish: what a state says, laid out as the leaf.
        labels: names of the parts of a layout that two uses must share for their states to be
            joined, beside the batch.
        check: what is wrong with a shape of states, if anything.
        of_inputs: whether `show` looks at nothing but inputs, so that uses that have the same
            input share one state.

    Example:
        >>> from nnopt_jax.trace import input_gram
        >>> input_gram(block=64).name
        'input_gram'
    """

    name: str
    show: Callable[[ProductUse], Any]
    start: Callable[[Any], Any]
    add: Callable[[Any, Any], Any]
    finish: Callable[[Any, LeafLayout], Any]
    labels: tuple[str, ...] = ()
    check: Callable[[Any], str] = lambda state: ""
    of_inputs: bool = False


class Extremes(NamedTuple):
    """The least and the greatest value; infinity and minus infinity before the first.

    Example:
        >>> from nnopt_jax.trace import Extremes
        >>> Extremes(low=-1.0, high=2.0).high
        2.0
    """

    low: Array
    high: Array


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


def input_absmax(*, channel: bool = False) -> Statistic:
    """The greatest magnitude of what a leaf is multiplied with.

    Args:
        channel: whether each channel of inputs has its own.

    Returns:
        The statistic, for `graph.observe`. It gives one number for a leaf, or for each of its
        layers; of channels, an array that broadcasts to the leaf.

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
        if use.inputs is None:
            return None
        x = use.masked(jnp.abs(use.inputs()), 0.0)
        return jnp.max(x, _rows(use) if channel else _all(use), initial=0.0)

    return Statistic(
        "input_absmax",
        show,
        lambda shapes: _full(shapes, 0.0),
        jnp.maximum,
        lambda state, lay: lay.channel(state) if channel else lay.leaf(state),
        ("groups", "channels") if channel else (),
        of_inputs=True,
    )


def input_range() -> Statistic:
    """The least and the greatest input of a leaf: `Extremes`, in the order of `input_absmax`.

    Example:
        >>> from nnopt_jax.trace import input_range
        >>> input_range().name
        'input_range'
    """

    def show(use: ProductUse) -> Extremes | None:
        if use.inputs is None:
            return None
        x, axes = use.inputs(), _all(use)
        return Extremes(
            jnp.min(use.masked(x, jnp.inf), axes, initial=jnp.inf),
            jnp.max(use.masked(x, -jnp.inf), axes, initial=-jnp.inf),
        )

    return Statistic(
        "input_range",
        show,
        lambda shapes: Extremes(_full(shapes.low, jnp.inf), _full(shapes.high, -jnp.inf)),
        lambda a, b: Extremes(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)),
        lambda state, lay: Extremes(*map(lay.leaf, state)),
        of_inputs=True,
    )


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
        return None if use.inputs is None else _sums(use, use.inputs(), _rows(use))

    def finish(state: _Sums, lay: LeafLayout) -> Moments:
        return _moments(state, lay, lay.channel)

    labels = ("groups", "channels")
    return Statistic("input_moments", show, _zeros, _join, finish, labels, of_inputs=True)


def output_moments() -> Statistic:
    """`Moments` of each channel of the products of a leaf, before anything is added to them.

    They broadcast to the leaf.

    Example:
        >>> from nnopt_jax.trace import output_moments
        >>> output_moments().name
        'output_moments'
    """

    def show(use: ProductUse) -> _Sums | None:
        return None if use.outputs is None else _sums(use, use.outputs(), len(use.batch))

    def finish(state: _Sums, lay: LeafLayout) -> Moments:
        return _moments(state, lay, lay.out)

    return Statistic("output_moments", show, _zeros, _join, finish, ("outs",))


def input_histogram(bins: int = 4096) -> Statistic:
    """A histogram that doubles its range where values lie beyond: `nnopt.quantization.Range`.

    Args:
        bins: a power of two from 256 to 65,536.

    Returns:
        The statistic. It gives what `nnopt.quantization.percentile_grid` and its like take, of
        scanned leaves with a leading axis of layers.

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
        if use.inputs is None:
            return None

        def add(x: Array) -> Range:
            return add_values(start, x)

        for _ in use.batch:
            add = jax.vmap(add)
        x = use.inputs()
        found = add(use.masked(x, jnp.nan))
        if use.valid is None:
            return found
        others = (~use.valid()).sum(-1) * math.prod(x.shape[_rows(use) + 1 :])
        return found._replace(ignored=found.ignored - others)  # they are not NaN themselves

    def begin(shapes: Range) -> Range:
        return jax.tree.map(lambda x, s: jnp.broadcast_to(x, s.shape).copy(), start, shapes)

    def finish(state: Range, lay: LeafLayout) -> Range:
        return Range(*map(lay.apart, state))

    return Statistic("input_histogram", show, begin, joined, finish, of_inputs=True)


def input_gram(block: int | None = None) -> Statistic:
    r"""Products of a leaf's inputs with each other: `X^T X` over all rows, float32.

    .. math:: G_{ij} = \sum_r x_{ri} x_{rj}

    `i` and `j` number all that is summed over, in the order of the leaf's own axes; of a
    convolution that is a patch of the image. Products are made in full float32 precision.

    Args:
        block: keeps only blocks of this size along the diagonal, for wide layers; it divides the
            number of entries that are summed over, or is larger.

    Returns:
        The statistic. It gives `(n, n)` for a leaf, or `(n / block, block, block)`; before these
        come layers of a scan, and groups of a grouped convolution.

    Raises:
        ValueRangeError: `block` is no whole number above 0.

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
        if use.patches is None:
            return None
        x = use.patches()
        if use.valid is None:
            return _gram(x, block)
        # All entries of the batch have the same rows; one after another, they are not copied.
        rows, valid = x.reshape(-1, *x.shape[-2:])[0], use.valid()
        each = lax.map(
            lambda own: _gram(jnp.where(own[:, None], rows, 0.0), block),
            valid.reshape(-1, valid.shape[-1]),
        )
        return each.reshape(*valid.shape[:-1], *each.shape[1:])

    def check(state: Array) -> str:
        n = state.shape[-1]
        return "" if block is None or n <= block else f"block {block} does not divide {n}"

    return Statistic(
        "input_gram", show, _zeros, jnp.add, lambda state, lay: lay.apart(state),
        ("groups", "channels", "contracted"), check, of_inputs=True,
    )  # fmt: skip


def input_count() -> Statistic:
    """How often each row of an embedding was looked up, float32; it broadcasts to the leaf.

    Exact up to 2**24 for a row.

    Example:
        >>> from nnopt_jax.trace import input_count
        >>> input_count().name
        'input_count'
    """

    def show(use: ProductUse) -> Array | None:
        return None if use.counts is None else use.counts()

    def finish(state: Array, lay: LeafLayout) -> Array:
        return lay.channel(state)

    labels = ("channels",)
    return Statistic("input_count", show, _zeros, jnp.add, finish, labels, of_inputs=True)


def rows() -> Statistic:
    """How many rows of inputs a leaf has; of lookups, how many were asked for."""

    def show(use: ProductUse) -> Array:
        if use.counts is not None:
            return use.counts().sum()
        if use.valid is not None:
            return use.valid().sum(-1, dtype=jnp.float32)
        shape = jax.eval_shape(use.inputs).shape if use.inputs is not None else ()
        return jnp.full(shape[: len(use.batch)], shape[len(use.batch) + len(use.groups)], "float32")

    finish = lambda state, lay: lay.leaf(state)  # noqa: E731 - one line says it
    return Statistic("rows", show, _zeros, jnp.add, finish, of_inputs=True)


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
"""What is measured at products and lookups, by name."""


def _rows(use: ProductUse) -> int:
    """The axis of rows in the inputs."""
    return len(use.batch) + len(use.groups)


def _all(use: ProductUse) -> tuple[int, ...]:
    """All axes but the batch."""
    first = len(use.batch)
    return tuple(range(first, first + len(use.groups) + 1 + len(use.channels)))


def _full(shapes: Any, value: float) -> Any:
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)


def _zeros(shapes: Any) -> Any:
    return _full(shapes, 0.0)


def _gram(x: Array, block: int | None) -> Array:
    """Products of columns, or those within blocks of columns."""
    if block is not None and x.shape[-1] % min(block, x.shape[-1]) == 0:
        x = x.reshape(*x.shape[:-1], -1, min(block, x.shape[-1]))
        x = jnp.moveaxis(x, -2, -3)
    batch = tuple(range(x.ndim - 2))
    numbers = ((x.ndim - 2,), (x.ndim - 2,)), (batch, batch)
    return lax.dot_general(x, x, numbers, precision=lax.Precision.HIGHEST)


def _sums(use: ProductUse, x: Array, axis: int) -> _Sums:
    """Of values along one axis, in two passes."""
    ones = _ones(x.shape, axis)
    if use.valid is None:
        count = jnp.full(ones, x.shape[axis], jnp.float32)
        mean = x.sum(axis) / max(x.shape[axis], 1)
    else:
        count = use.valid().sum(-1, dtype=jnp.float32).reshape(ones)
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
