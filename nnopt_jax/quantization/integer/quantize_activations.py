"""Activations rounded where they meet a weight, with no change to the model."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.input_quantized import InputQuantized, rounds_inputs
from nnopt_jax.errors import Problems, StatisticsError
from nnopt_jax.ops.grid import grid_of_range
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Leaves, Start, matrices, wrapping
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import Array

_NAME = "quantization.quantize_activations"
STATISTIC = "input_absmax"
"""What static scales are made of: the greatest magnitude that met each leaf."""


def quantize_activations(
    bits: int = 8,
    *,
    where: Where = matrices,
    scale: Literal["dynamic", "static"] = "dynamic",
) -> Transform:
    r"""Rounds what the chosen weights are multiplied with, at the product itself.

    .. math:: x \cdot W \;\to\; \hat x \cdot W, \qquad
        \hat x = s \, \mathrm{clip}(\mathrm{round}(x / s), -hi, hi)

    The weight is what it was; its products change where the function runs on packed parameters:
    `nnopt.on_packed(fn)`, in training `nnopt.value_and_grad(nnopt.on_packed(loss), tx)`. Codes of
    8 bits on both sides are multiplied as integers where the machine gains by it. Gradients pass
    straight through, at the master weights. A function that is given dense parameters rounds
    nothing.

    Args:
        bits: 2 to 8.
        where: which leaves; default: those of two axes or more.
        scale: `"dynamic"`: each row of activations has the range of its own extreme values (its
            entries along the axes that are summed over). `"static"`: a range for each leaf, of
            `stats={"input_absmax": {path: ...}}`; magnitudes beyond it are clipped and get no
            gradient.

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
        al. 2022, ZeroQuant, section 4.1.
    """
    settings = Settings(_NAME)
    settings.integer("bits", bits, 2, 8)
    settings.choice("scale", scale, ("dynamic", "static"))
    settings.done()
    needs = (STATISTIC,) if scale == "static" else ()

    def init(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        if scale == "dynamic":
            return {}, dict.fromkeys(leaves, ())
        seen = {path: jnp.asarray(start.stats[STATISTIC][path]) for path in leaves}
        _check_seen(seen, leaves)
        return {}, {path: _scale(seen[path], leaf, bits) for path, leaf in leaves.items()}

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        del train
        return {
            path: InputQuantized(
                leaf, state.rest[path] if scale == "static" else None, input_bits=bits
            )
            for path, leaf in leaves.items()
        }

    return wrapping(_NAME, where, init=init, encode=encode, refuses=_refuses, needs=needs)


def _refuses(path: str, leaf: Any) -> str | None:
    del path
    return "rounds what it is multiplied with already; do it once" if rounds_inputs(leaf) else None


def _check_seen(seen: Leaves, leaves: Leaves) -> None:
    problems = Problems(_NAME)
    for path, top in seen.items():
        shape = leaves[path].shape
        if top.shape not in (shape, shape[: top.ndim]):
            problems.add(path, f"{STATISTIC} has shape {top.shape}, the leaf {shape}; give one "
                               "magnitude, or one for each of its layers"
                         )  # fmt: skip
        elif not isinstance(top, Tracer) and not bool((jnp.isfinite(top) & (top >= 0)).all()):
            problems.add(path, f"{STATISTIC} is {top.tolist()}; give magnitudes")
    problems.raise_as(StatisticsError)


def _scale(seen: Array, leaf: Array, bits: int) -> Array:
    """Of one magnitude for a leaf, or one for each of its layers; of one for each weight the top.

    (Whoever wants to know shapes alone may have no better statistic at hand than one of the shape
    of the leaf.)
    """
    top = jnp.asarray(seen, jnp.float32)
    top = top.max(initial=0.0) if top.ndim == leaf.ndim else top
    scale, _ = grid_of_range(-top, top, bits)
    return jax.lax.stop_gradient(scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim)))
