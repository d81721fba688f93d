"""Quantization of the inputs of products with weights, without changes to the model."""

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
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.transform.measured import not_measured
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Array

_NAME = "quantization.quantize_activations"
STATISTIC = "input_absmax"
"""The default statistic for static scales: the greatest magnitude of each leaf's inputs."""

HISTOGRAM = "input_histogram"
"""The statistic for ranges that exclude outliers."""

InputRange: TypeAlias = Literal["absmax", "percentile", "mse", "kl"]
"""The choice of a static range."""


@recorded
def quantize_activations(
    bits: int = 8,
    *,
    where: Where = matrices,
    scale: Literal["dynamic", "static"] = "dynamic",
    range: InputRange = "absmax",
    percent: float = 99.9,
) -> Transform:
    r"""Round the inputs of products with the chosen weights.

    $$ x \cdot W \;\to\; \hat x \cdot W, \qquad
       \hat x = s \, \mathrm{clip}(\mathrm{round}(x / s), -hi, hi) $$

    The weight itself is unchanged. Its products round their inputs if the function runs on packed
    parameters: `nnopt.on_packed(fn)`, or in training `nnopt.value_and_grad(nnopt.on_packed(loss),
    tx)`. Codes of 8 bits in both operands are multiplied as integers where that is faster.
    Gradients pass straight through, at the master weights. A function of dense parameters rounds
    nothing.

    Args:
        bits: 2 to 8.
        where: which leaves; by default those of two or more axes.
        scale: `"dynamic"`: each row of activations (its entries along the contracted axes) has the
            range of its own extreme values. `"static"`: each leaf, or each of its layers or experts
            (its batch axes), has a range that `graph.observe(params, batches, tx.needs)` measured;
            activations beyond it are clipped and get no gradient.
        range: the choice of a static range. `"absmax"`: the greatest magnitude. `"percentile"`: the
            least range that holds a percentage of all magnitudes. `"mse"`: the range of least
            squared error. `"kl"`: the range of least relative entropy, as in TensorRT's
            calibration. All but the first use a histogram.
        percent: the percentage of all magnitudes, 50 to 100; used only by `"percentile"`.

    Returns:
        The transform. It wraps, so put it after the transform that quantizes the weights. The
        stored form records how inputs are rounded.

    Raises:
        ValueRangeError: a setting is out of range.
        StatisticsError: at `init`, static ranges are missing, for some leaves or for all.

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
    """Return the greatest activation magnitude of the grid, for a leaf or each of its layers."""
    if range == "absmax":
        return jnp.asarray(seen)
    if not isinstance(seen, Range):
        if isinstance(seen, Tracer):  # the caller only needs shapes
            return seen
        raise not_measured(_NAME, path, HISTOGRAM, seen)

    def grid(state: Range) -> Array:
        if range == "percentile":
            return percentile_grid(state, percent, bits).scale
        return (mse_grid if range == "mse" else kl_grid)(state, bits).scale

    for _ in seen.counts.shape[:-1]:  # for layers of a scan, or experts
        grid = jax.vmap(grid)
    return grid(seen) * integer_range(bits)[1]


def _like_leaf(top: Array, shape: tuple[int, ...], batch: tuple[int, ...] | None) -> Array | None:
    """Reshape activation magnitudes so that they broadcast along the batch axes of a leaf.

    Args:
        top: one magnitude for a leaf, one for each index of its batch axes, or the layout of
            `graph.observe`, like the leading axes of the leaf. If there is one for each weight, the
            greatest is used, because callers that only need shapes may pass such a statistic.
        shape: the shape of the leaf.
        batch: the batch axes of the leaf; None if they are unknown.

    Returns:
        The magnitudes, or None if they do not fit.
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
    """Return the activation magnitudes of all leaves; raise one error for all invalid ones."""
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
    """Return the scale of a grid that represents the greatest magnitudes."""
    top = jnp.asarray(top, jnp.float32)
    scale, _ = grid_of_range(-top, top, bits)
    return jax.lax.stop_gradient(scale)
