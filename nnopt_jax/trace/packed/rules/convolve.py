"""Convolutions with packed kernels."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, show
from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.arrays.quantized import Quantized
from nnopt_jax.trace.jaxpr import Equation, bind
from nnopt_jax.trace.packed.rules.contraction import Contraction, Dense
from nnopt_jax.trace.packed.rules.rounded import rounded
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
    numbers = equation.params["dimension_numbers"]
    if isinstance(kernel, InputQuantized):
        batch = numbers.lhs_spec[0]
        others = tuple(axis for axis in range(x.ndim) if axis != batch)
        shown = rounded(x, kernel, Contraction(others, (), (), (), {}))
        if kernel.shown is not None:
            return bind(equation, [shown, kernel.shown])[0]
        try:
            return convolve(shown, kernel.values, equation)
        except Dense as reason:
            dense = bind(equation, [shown, kernel.materialize()])[0]
            raise Dense(str(reason), dense) from reason
    if not isinstance(kernel, Quantized):
        raise Dense("no product of its parts is the product of the whole")
    return _by_codes(x, kernel, equation)


def _by_codes(x: Array, kernel: Quantized, equation: Equation) -> Array:
    numbers = equation.params["dimension_numbers"]
    if kernel.zero is not None:
        raise Dense("it has zero points")
    scale, axis = show(kernel.scale), numbers.rhs_spec[0]
    if any(size != 1 for at, size in enumerate(scale.shape) if at != axis):
        raise Dense("its scales differ along axes that are summed over")
    codes = show(kernel.codes).astype(kernel.dtype)
    (out,) = bind(equation, [x, codes])
    scale = jnp.repeat(scale.ravel(), codes.shape[axis] // scale.size)
    wide = [1] * out.ndim
    wide[numbers.out_spec[1]] = scale.size
    return (out.astype(jnp.float32) * scale.reshape(wide)).astype(out.dtype)
