"""Execution of a program on values, some of which are packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.hooks import CannotStayPacked
from nnopt_jax.errors import ShapeError
from nnopt_jax.trace.control import CONTROL
from nnopt_jax.trace.jaxpr import Equation, Program, bind, evaluate, primitives
from nnopt_jax.trace.packed.deferred import Deferred
from nnopt_jax.trace.packed.inside import InsidePacked
from nnopt_jax.trace.packed.leaf import Leaf, dense, is_leaf
from nnopt_jax.trace.packed.steps import step
from nnopt_jax.trace.primitives import TABLE, Flow, Table

Seen = Callable[[Leaf, Equation, str], None]
"""Called with a leaf, a step that uses it, and why it was materialized; empty if it was not."""


def run(program: Program, values: Sequence[Any], seen: Seen, table: Table = TABLE) -> list[Any]:
    """Compute a program on arrays and packed leaves.

    Args:
        program: the traced program.
        values: arrays and `Leaf`s, one for each input.
        seen: called for each use of a leaf.
        table: the rules of the primitives.

    Returns:
        Arrays, and a `Leaf` for each output that is an unchanged or moved leaf.
    """
    return evaluate(
        program, values, lambda _, equation, given: _compute(equation, given, seen, table)
    )


def _compute(equation: Equation, values: list[Any], seen: Seen, table: Table) -> list[Any]:
    packed = [value for value in values if is_leaf(value)]
    if not packed:
        if _is_scalar_constant(equation, values):
            # Under `jax.jit` too, rules must be able to read a fill value or a scale factor.
            with jax.ensure_compile_time_eval():
                return bind(equation, values)
        return bind(equation, values)
    if equation.primitive in CONTROL:
        values = _computed_once(equation, values, seen, table)
        inside = InsidePacked(
            equation, lambda program, given: run(program, given, seen, table), seen
        )
        return CONTROL[equation.primitive](equation, values, inside)[0]
    try:
        with equation.ctx.manager:  # the mesh that it was traced under
            found = step(equation, values, table)
    except CannotStayPacked as reason:
        for leaf in packed:
            seen(leaf, equation, str(reason))
        if reason.instead is not None:
            return [*reason.instead] if isinstance(reason.instead, tuple) else [reason.instead]
        return bind(equation, [dense(value) for value in values])
    for leaf in packed:
        seen(leaf, equation, "")
    _check_shapes(equation, packed, found)
    return found


def _check_shapes(equation: Equation, packed: list[Any], found: list[Any]) -> None:
    """Raise if the hook of a node gave something of another shape."""
    for value, variable in zip(found, equation.outvars, strict=True):
        shape, wanted = tuple(value.shape), tuple(variable.aval.shape)
        if shape != wanted:
            forms = " and ".join(dict.fromkeys(leaf.form for leaf in packed))
            raise ShapeError(
                f"on_packed: {packed[0].path}: {equation.primitive.name} of {forms} has shape "
                f"{shape}, and {wanted} is wanted; mend the hook of that node."
            )


def _computed_once(equation: Equation, values: list[Any], seen: Seen, table: Table) -> list[Any]:
    """Compute deferred steps before a loop, which would compute them in every iteration."""
    programs = table.programs_of(equation)
    if programs is None or programs.flow is not Flow.LOOP:
        return values
    found = list(values)
    for at, value in enumerate(values):
        if at not in programs.sliced and is_leaf(value) and isinstance(value.node, Deferred):
            seen(value, equation, "a loop would compute it at every turn")
            found[at] = dense(value)
    return found


def _is_scalar_constant(equation: Equation, values: list[Any]) -> bool:
    """Return whether a step casts a scalar constant of the program."""
    cast = equation.primitive is primitives.convert_element_type_p
    return cast and not isinstance(values[0], Tracer) and np.ndim(values[0]) == 0
