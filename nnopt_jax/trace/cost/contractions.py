"""How many products of numbers a contraction sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.probed import ragged_dot_general_p


def products(equation: Equation) -> int | None:
    """The multiplications of a contraction; None for any other step.

    Args:
        equation: the step.
    """
    count = _PRODUCTS.get(equation.primitive)
    return None if count is None else count(equation)


def _shapes(equation: Equation) -> tuple[tuple[int, ...], ...]:
    """Of both operands and of the outcome."""
    return tuple(tuple(x.aval.shape) for x in (*equation.invars[:2], *equation.outvars))


def _dot(equation: Equation) -> int:
    """Each entry of the outcome is a sum over what is contracted."""
    left, _, out = _shapes(equation)
    (axes, _), _ = equation.params["dimension_numbers"]
    return math.prod(out) * math.prod(left[axis] for axis in axes)


def _ragged(equation: Equation) -> int:
    """Each row meets one group; or each entry along the sum belongs to one."""
    left, _, out = _shapes(equation)
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (axes, _), _ = numbers.dot_dimension_numbers
    count = math.prod(out) * math.prod(left[axis] for axis in axes)
    summed = numbers.lhs_ragged_dimensions[0] in axes
    return count // (equation.invars[2].aval.shape[-1] or 1) if summed else count


def _convolution(equation: Equation) -> int:
    """For each image, output and input feature: the taps that meet an entry, at all positions.

    Entries of the padding count, as they do in the tables of papers; the zeros that
    `lhs_dilation` puts between entries (of a transposed convolution) do not.
    """
    _, kernel, out = _shapes(equation)
    k = equation.params
    numbers = k["dimension_numbers"]
    features = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    each = zip(
        (out[axis] for axis in numbers.out_spec[2:]),
        (kernel[axis] for axis in numbers.rhs_spec[2:]),
        k["window_strides"], k["rhs_dilation"], k["lhs_dilation"],
        (low for low, _ in k["padding"]),
        strict=True,
    )  # fmt: skip
    return features * math.prod(_meetings(*axis) for axis in each)


def _meetings(places: int, taps: int, stride: int, apart: int, holes: int, before: int) -> int:
    """Pairs of a position and a tap, along one axis, that are not at a hole."""
    if holes == 1:
        return places * taps
    return sum(
        (place * stride + tap * apart - before) % holes == 0
        for place in range(places)
        for tap in range(taps)
    )


_PRODUCTS: dict[Any, Callable[[Equation], int]] = {
    primitives.dot_general_p: _dot,
    primitives.conv_general_dilated_p: _convolution,
    ragged_dot_general_p: _ragged,
}
