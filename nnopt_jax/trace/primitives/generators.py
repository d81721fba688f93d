"""Rules of generators, decompositions and FFTs, whose arrays share at most leading axes."""

from __future__ import annotations

import functools
from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import opaque_rule, shape_of
from nnopt_jax.trace.primitives.primitive_rule import Flops, Kind, MakeRule, OpRule


def _generator(equation: Equation, shared: int = 0, **facts: Any) -> OpRule:
    """Return the rule of a generator, such as `iota`.

    The parameter `shape` is the shape of the last outcome, without the leading shared axes.
    """
    has_shape = "shape" in equation.params
    resize = (lambda _, outcomes: {"shape": tuple(outcomes[-1][shared:])}) if has_shape else None
    return opaque_rule(equation, shared, kind=Kind.MADE, resize=resize, **facts)


def _random(equation: Equation) -> OpRule:
    """Return the rule of a random primitive, which shares the leading axes of the keys."""
    shared = min(len(shape_of(x)) for x in (*equation.invars, *equation.outvars))
    return _generator(equation, shared)


GENERATORS: dict[str, MakeRule] = {
    "iota empty empty2": functools.partial(_generator, flops=Flops()),
    "random_bits random_fold_in random_gamma random_seed random_split random_unwrap random_wrap "
    "threefry2x32": _random,
    "rng_bit_generator rng_uniform axis_index platform_index create_token after_all": _generator,
}
"""The rules of generators, which make arrays, by names of primitives."""


def _batched_rule(equation: Equation, last: int = 2) -> OpRule:
    """Return the rule of a batched function that needs the last axes of its operand in full."""
    return opaque_rule(equation, len(shape_of(equation.invars[0])) - last)


LINEAR_ALGEBRA: dict[str, MakeRule] = {
    "cholesky eig eigh hessenberg householder_product lu qr schur svd triangular_solve "
    "tridiagonal": _batched_rule,
    "tridiagonal_solve": lambda equation: _batched_rule(equation, 1),
    "fft": lambda equation: _batched_rule(equation, len(equation.params["fft_lengths"])),
}
"""The rules of linear algebra, by names of primitives; their operations are not counted."""
