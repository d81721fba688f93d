"""Convolutions with packed kernels."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node, show
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.levels import Levels
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.ops.levels import level_values
from nnopt_jax.trace.jaxpr import Equation, bind
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense, whole_codes
from nnopt_jax.trace.packed.rules.rounded import below, rounded
from nnopt_jax.typing import Array


def convolve(x: Array, kernel: Field, equation: Equation) -> Array:
    r"""A convolution by its codes, `x * (s q) = s (x * q)` where scales are those of outputs.

    Where the kernel says so images are rounded first, each on a grid of its own.

    Args:
        x: the images.
        kernel: the node.
        equation: the step, which says how axes lie.

    Raises:
        Dense: there is no way but to make the kernel dense.
    """
    if not is_node(kernel):
        return bind(equation, [x, kernel])[0]
    numbers = equation.params["dimension_numbers"]
    if isinstance(kernel, InputQuantized):
        batch = numbers.lhs_spec[0]
        others = tuple(axis for axis in range(x.ndim) if axis != batch)
        shown = rounded(x, kernel, Contraction(others, (), (), ()))
        return below(
            kernel,
            lambda w: bind(equation, [shown, w])[0],
            lambda w: convolve(shown, w, equation),
        )
    if isinstance(kernel, Levels) and kernel.below is None:
        wide = x.astype(jnp.float32)  # levels are of float32
        values = level_values(show(kernel.codes), kernel.levels)
        return _scaled(wide, values, show(kernel.scale), equation).astype(x.dtype)
    if isinstance(kernel, Quantized):
        return _scaled(x, whole_codes(kernel), show(kernel.scale), equation)
    raise Dense("no product of its parts is the product of the whole")


def _scaled(x: Array, values: Array, scale: Array, equation: Equation) -> Array:
    numbers = equation.params["dimension_numbers"]
    axis = numbers.rhs_spec[0]
    if any(size != 1 for at, size in enumerate(scale.shape) if at != axis):
        raise Dense("its scales differ along axes that are summed over")
    (out,) = bind(equation, [x, values])
    scale = jnp.repeat(scale.ravel(), values.shape[axis] // scale.size)
    wide = [1] * out.ndim
    wide[numbers.out_spec[1]] = scale.size
    return (out.astype(jnp.float32) * scale.reshape(wide)).astype(out.dtype)
