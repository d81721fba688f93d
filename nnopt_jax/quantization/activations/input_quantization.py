"""Activations rounded where they meet a weight, with no change to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.input_quantized import InputQuantized, rounds_inputs
from nnopt_jax.errors import Problems, StatisticsError
from nnopt_jax.ops.grid import grid_of_range, integer_range
from nnopt_jax.ops.running_histogram import Range
from nnopt_jax.quantization.activations.entropy_grid import kl_grid
from nnopt_jax.quantization.activations.static_grids import mse_grid, percentile_grid
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.given import described
from nnopt_jax.transform.leaves import Leaves, Start, matrices, wrapping
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Array

_NAME = "quantization.quantize_activations"
STATISTIC = "input_absmax"
"""What static scales are made of by default: the greatest magnitude of each leaf's inputs."""

HISTOGRAM = "input_histogram"
"""What the ranges are made of that leave outliers out."""

InputRange: TypeAlias = Literal["absmax", "percentile", "mse", "kl"]
"""How a static range is chosen."""


@recorded
def quantize_activations(
    bits: int = 8,
    *,
    where: Where = matrices,
    scale: Literal["dynamic", "static"] = "dynamic",
    range: InputRange = "absmax",
    percent: float = 99.9,
) -> Transform:
    r"""Rounds what the chosen weights are multiplied with, at the product itself.

    $$ x \cdot W \;\to\; \hat x \cdot W, \qquad
       \hat x = s \, \mathrm{clip}(\mathrm{round}(x / s), -hi, hi) $$

    The weight is what it was; its products change where the function runs on packed parameters:
    `nnopt.on_packed(fn)`, in training `nnopt.value_and_grad(nnopt.on_packed(loss), tx)`. Codes of
    8 bits on both sides are multiplied as integers where the machine gains by it. Gradients pass
    straight through, at the master weights. A function that is given dense parameters rounds
    nothing.

    Args:
        bits: 2 to 8.
        where: which leaves; default: those of two axes or more.
        scale: `"dynamic"`: each row of activations has the range of its own extreme values (its
            entries along the axes that are summed over). `"static"`: a range for each leaf, or for
            each of its layers or experts (its batch axes), of what `graph.observe(params, batches,
            tx.needs)` measured; magnitudes beyond it are clipped and get no gradient.
        range: of static scales. `"absmax"`: the greatest magnitude. `"percentile"`: the least
            range with a percentage of all magnitudes. `"mse"`: that of least squared error.
            `"kl"`: that of least relative entropy, as TensorRT calibrates. All but the first are
            made of a histogram.
        percent: 50 to 100, of all magnitudes; used by `"percentile"` only.

    Returns:
        The transform. It wraps: give it after what quantizes the weights. What is stored tells
        how it is to be multiplied.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: at `init`, where static ranges lack a leaf, or are none.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.chain(
        ...     nnopt.quantization.uniform(8, granularity="channel"),
        ...     nnopt.quantization.quantize_activations(2),
        ... )
        >>> params = {"kernel": jnp.array([[1.0], [1.0]])}
        >>> packed = tx.pack(params, tx.init(params))
        >>> run = nnopt.on_packed(lambda params, x: x @ params["kernel"])
        >>> print(run(packed, jnp.array([[3.0, 1.0], [0.2, -1.0]])))
        [[ 3.]
         [-1.]]

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 3; rows: Yao et
        al. 2022, ZeroQuant, section 4.1; ranges: Wu et al. 2020, Integer Quantization for Deep
        Learning Inference, section 3.3.
    """
    settings = Settings(_NAME)
    settings.integer("bits", bits, 2, 8)
    settings.choice("scale", scale, ("dynamic", "static"))
    settings.choice("range", range, ("absmax", "percentile", "mse", "kl"))
    settings.number("percent", percent, 50, 100)
    if scale == "dynamic" and range != "absmax":
        settings.wrong("range", range, "goes with scale='static'; each row has its own extremes.")
    settings.done()
    statistic = STATISTIC if range == "absmax" else HISTOGRAM
    needs = (statistic,) if scale == "static" else ()

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        return {
            path: InputQuantized(
                leaf, state.rest[path] if scale == "static" else None, input_bits=bits
            )
            for path, leaf in leaves.items()
        }

    def build(binding: Binding) -> Transform:
        def init(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
            if scale == "dynamic":
                return {}, dict.fromkeys(leaves, ())
            given = start.stats[statistic]
            tops = {path: _top(path, given[path], range, bits, percent) for path in leaves}
            found = {
                path: _like_leaf(tops[path], leaf.shape, batch_of(path, leaf))
                for path, leaf in leaves.items()
            }
            fitting = _fitting(statistic, tops, found, leaves)
            return {}, {path: _scale(top, bits) for path, top in fitting.items()}

        def batch_of(path: str, leaf: Any) -> tuple[int, ...] | None:
            axes = binding.of(path, leaf.shape) if binding.is_bound else None
            return None if axes is None else axes.batch

        return wrapping(
            _NAME, where, init=init, encode=encode, refuses=_refuses, needs=needs, binding=binding
        )

    return bindable(build)


def _refuses(path: str, leaf: Any) -> str | None:
    del path
    return "rounds what it is multiplied with already; do it once" if rounds_inputs(leaf) else None


def _top(path: str, seen: Any, range: InputRange, bits: int, percent: float) -> Array:
    """The greatest magnitude that a grid reaches, for a leaf or for each of its layers."""
    if range == "absmax":
        return jnp.asarray(seen)
    if not isinstance(seen, Range):
        if isinstance(seen, Tracer):  # where shapes alone are asked for
            return seen
        raise StatisticsError(
            f"{_NAME}: {path}: its {HISTOGRAM} is {described(seen)}; give what "
            "graph.observe(params, batches, tx.needs) measured."
        )

    def grid(state: Range) -> Array:
        if range == "percentile":
            return percentile_grid(state, percent, bits).scale
        return (mse_grid if range == "mse" else kl_grid)(state, bits).scale

    for _ in seen.counts.shape[:-1]:  # layers of a scan, experts
        grid = jax.vmap(grid)
    return grid(seen) * integer_range(bits)[1]


def _like_leaf(top: Array, shape: tuple[int, ...], batch: tuple[int, ...] | None) -> Array | None:
    """Give magnitudes the rank of their leaf, with one entry along the axes they are not for.

    Args:
        top: one for a leaf; one for each entry of its batch axes; or as `graph.observe` lays them
            out, like the first axes of the leaf. Of one for each weight the greatest is taken:
            who asks for shapes alone may have no better statistic at hand.
        shape: of the leaf.
        batch: its batch axes; None where they are not known.

    Returns:
        The magnitudes, or None where they do not fit.
    """
    if top.shape == shape:
        return top.max(initial=0.0).reshape((1,) * len(shape))
    if batch is not None and top.shape == tuple(shape[axis] for axis in batch):
        top = top.transpose(sorted(range(len(batch)), key=batch.__getitem__))
        return top.reshape([size if axis in batch else 1 for axis, size in enumerate(shape)])
    fits = top.ndim <= len(shape) and all(
        one == 1 or (one == size and (batch is None or axis in batch))
        for axis, (one, size) in enumerate(zip(top.shape, shape, strict=False))
    )
    return top.reshape(top.shape + (1,) * (len(shape) - top.ndim)) if fits else None


def _fitting(
    statistic: str, given: Leaves, found: Mapping[str, Array | None], leaves: Leaves
) -> dict[str, Array]:
    """Return magnitudes that fit their leaves; report all others at once."""
    problems = Problems(_NAME)
    for path, top in found.items():
        if top is None:
            problems.add(path, f"{statistic} has shape {jnp.shape(given[path])}, the leaf "
                               f"{leaves[path].shape}; give one magnitude, or one for each of its "
                               "layers"
                         )  # fmt: skip
        elif not isinstance(top, Tracer) and not bool((jnp.isfinite(top) & (top >= 0)).all()):
            problems.add(path, f"{statistic} is {given[path].tolist()}; give magnitudes")
    problems.raise_as(StatisticsError)
    return {path: top for path, top in found.items() if top is not None}


def _scale(top: Array, bits: int) -> Array:
    """The step of a grid that reaches the greatest magnitudes."""
    top = jnp.asarray(top, jnp.float32)
    scale, _ = grid_of_range(-top, top, bits)
    return jax.lax.stop_gradient(scale)
