"""Decompositions and transforms: leading axes are batches, the last ones are needed whole."""

from __future__ import annotations

from collections.abc import Callable

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import opaque_rule, shape_of
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Rule


def _batched(last: int) -> Callable[[Equation], Rule]:
    """Return a maker of rules for equations that work on the last axes of the first operand."""
    return lambda equation: opaque_rule(equation, len(shape_of(equation.invars[0])) - last)


def _fft(equation: Equation) -> Rule:
    last = len(equation.params["fft_lengths"])
    return opaque_rule(equation, len(shape_of(equation.invars[0])) - last)


LINEAR_ALGEBRA = {
    **dict.fromkeys(
        named(
            "cholesky eig eigh hessenberg householder_product lu qr schur svd triangular_solve "
            "tridiagonal"
        ),
        _batched(2),
    ),
    **dict.fromkeys(named("tridiagonal_solve"), _batched(1)),
    **dict.fromkeys(named("fft"), _fft),
}
"""Rules of linear algebra. Their operations are not counted."""
