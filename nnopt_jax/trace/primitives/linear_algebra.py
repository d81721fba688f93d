"""Rules of decompositions and transforms, with leading batch axes and last axes needed whole."""

from __future__ import annotations

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import opaque_rule, shape_of
from nnopt_jax.trace.primitives.primitive_rule import MakeRule, Rule


def _batched(equation: Equation, last: int = 2) -> Rule:
    """Return a rule in which the last axes of the first operand are needed whole."""
    return opaque_rule(equation, len(shape_of(equation.invars[0])) - last)


LINEAR_ALGEBRA: dict[str, MakeRule] = {
    "cholesky eig eigh hessenberg householder_product lu qr schur svd triangular_solve "
    "tridiagonal": _batched,
    "tridiagonal_solve": lambda equation: _batched(equation, 1),
    "fft": lambda equation: _batched(equation, len(equation.params["fft_lengths"])),
}
"""Rules of linear algebra. Their operations are not counted."""
