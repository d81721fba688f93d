"""How far apart two float32 evaluations of one program may lie.

Processors add in different orders: a vector of sixteen numbers keeps sixteen partial sums, one of
four keeps four, and a fused multiply-add rounds once where a product and a sum round twice. In
any order, a sum of n products is within gamma(n) * sum(|x| * |y|) of the exact one, where
gamma(n) = n * u / (1 - n * u) and u is half the distance from 1 to the next float. Errors of steps
that follow one another add up: gamma(m) + gamma(n) + gamma(m) * gamma(n) <= gamma(m + n).

References:
    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, sections 3.1 to 3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def relative(function: Callable[..., Any], *args: Any) -> float:
    """Return the greatest difference of two evaluations, as a fraction of the greatest output.

    Both are off by gamma of the roundings along the longest path. The greatest output stands for
    sum(|x| * |y|): the bound is for well-conditioned programs, whose inner sums do not cancel.
    """
    count = roundings(function, *args)
    unit = float(jnp.finfo(jnp.float32).eps) / 2
    return 2 * count * unit / (1 - count * unit)


def roundings(function: Callable[..., Any], *args: Any) -> int:
    """Return the number of roundings along the longest path from an input to an output."""
    return _longest(jax.make_jaxpr(function)(*args).jaxpr)


def _longest(program: Jaxpr) -> int:
    behind: dict[Var, int] = {}  # the roundings on the longest path to each value
    for step in program.eqns:
        before = [behind.get(value, 0) for value in step.invars if isinstance(value, Var)]
        count = max(before, default=0) + _roundings(step)
        behind.update((value, count) for value in step.outvars)
    return max((behind.get(x, 0) for x in program.outvars if isinstance(x, Var)), default=0)


def _roundings(step: JaxprEqn) -> int:
    """A sum rounds as often as it adds, any other step of floats once.

    The count of a loop's trips is that of `scan`; a `while` does not state it and counts once.
    """
    inner = [_longest(program) for program in _programs(step)]
    if inner:
        return max(inner) * step.params.get("length", 1)
    if not any(jnp.issubdtype(value.aval.dtype, jnp.inexact) for value in step.outvars):
        return 0
    shapes, params = [value.aval.shape for value in step.invars], step.params
    match step.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            return _size(shapes[0], contracted)
        case "conv_general_dilated":
            outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            return int(np.prod(shapes[1])) // max(outputs, 1)
        case "reduce_sum":
            return _size(shapes[0], params["axes"])
        case "cumsum":
            return shapes[0][params["axis"]]
        case "reduce_window_sum":
            return int(np.prod(params["window_dimensions"]))
    return 1


def _size(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return int(np.prod([shape[axis] for axis in axes]))


def _programs(step: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the programs that a step calls: the body of a loop, the branches of a condition."""
    kinds = (ClosedJaxpr, Jaxpr)
    for value in jax.tree.leaves(step.params, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(value, kinds):
            yield getattr(value, "jaxpr", value)
