"""The values that an outcome holds at removed units, from those of its operands."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.coupling.value import Left, Remains, Value, agreed
from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives import Dim, Factor, Kind, Rule, factors_of


def elementwise(equation: Equation, rule: Rule, given: Sequence[Remains]) -> Remains:
    """Return the value of an elementwise step at removed units.

    Args:
        equation: the step.
        rule: the rule of its primitive.
        given: the value of each operand there.
    """
    numbers = [x for x in given if not isinstance(x, Left)]
    zeros = [i for i in rule.absorbs if given[i] == 0.0]
    others = [x for i, x in enumerate(given) if i not in zeros and not isinstance(x, Left)]
    if zeros and all(x and math.isfinite(x) for x in others):
        return 0.0
    if rule.chooses and not isinstance(agreed([given[i] for i in rule.data]), Left):
        return given[rule.data[0]]
    if len(numbers) == len(given):
        params = tuple(sorted(equation.params.items()))
        dtypes = tuple(x.aval.dtype for x in equation.invars)
        return _evaluated(equation.primitive, params, dtypes, tuple(numbers))
    return Left.UNKNOWN if Left.UNKNOWN in given else Left.ALIKE


@functools.lru_cache(maxsize=4096)
def _evaluated(
    primitive: Any, params: tuple, dtypes: tuple[Any, ...], numbers: tuple[float, ...]
) -> Remains:
    """Evaluate a primitive on scalars."""
    try:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            given = [np.asarray(x).astype(d) for x, d in zip(numbers, dtypes, strict=True)]
            found = primitive.bind(*given, **dict(params))
            found = np.asarray(found[0] if primitive.multiple_results else found)
    except Exception:  # a primitive with its own shapes or mesh is not a function of scalars alone
        return Left.ALIKE
    if found.ndim or not (jnp.issubdtype(found.dtype, jnp.floating) or found.dtype.kind in "biu"):
        return Left.ALIKE
    return float(found) if math.isfinite(found) else Left.BROKEN


def constant_of(
    equation: Equation, rule: Rule, values: Sequence[Value], outcome: int
) -> float | None:
    """Return the number that every element of an outcome equals; None if unknown."""
    constants = [values[i].constant for i in rule.sources_of(outcome) if i in rule.data]
    if rule.kind is Kind.REDUCTION:
        return 0.0 if rule.absorbs and constants == [0.0] else None
    if rule.kind is Kind.ELEMENTWISE:
        constants = [value.constant for value in values]
        if None in constants:
            return None
        found = elementwise(equation, rule, constants)  # pyright: ignore[reportArgumentType]
        return None if isinstance(found, Left) else found
    if rule.kind is not Kind.MOVEMENT or rule.mesh or None in constants or not constants:
        return None
    return constants[0] if len(set(constants)) == 1 else None


def along_factor(
    equation: Equation,
    rule: Rule,
    values: Sequence[Value],
    left: Mapping[int, Remains],
    counted: bool,
) -> Remains:
    """Return the value of an outcome where elements of a factor of the step are removed.

    Args:
        equation: the step.
        rule: the rule of its primitive.
        values: its operands.
        left: the values at removed elements of the operands that have the factor, by number.
        counted: whether the step sums over other removed elements, which are not zero.
    """
    kind = rule.kind
    if kind is Kind.ELEMENTWISE:
        others = [Left.ALIKE if x.constant is None else x.constant for x in values]
        return elementwise(equation, rule, [left.get(i, x) for i, x in enumerate(others)])
    own = [remains for i, remains in left.items() if i not in rule.chooses]
    if kind is Kind.MOVEMENT:
        repeated = Left.ALIKE if values[0].constant is None else values[0].constant
        return agreed(own) if own else repeated
    if kind is Kind.CONTRACTION:
        if 0.0 in own:
            return 0.0
        return Left.UNKNOWN if Left.UNKNOWN in own else Left.ALIKE
    if any(i in left for i in rule.chooses) or not own:
        return Left.UNKNOWN
    if kind is Kind.LOOKUP:
        return own[0]
    if kind is Kind.UPDATE or rule.absorbs:
        if agreed(own) == 0.0:
            return 0.0
        alike = kind is Kind.REDUCTION and not counted and Left.UNKNOWN not in own
        return Left.ALIKE if alike else Left.UNKNOWN
    return Left.UNKNOWN


_FOLLOWED = (Kind.ELEMENTWISE, Kind.MOVEMENT, Kind.CONTRACTION, Kind.REDUCTION)


def followed(rule: Rule, outcome: int, axis: int) -> dict[int, int] | None:
    """Return the axis of each operand that is the same as an axis of an outcome; None without one.

    The value at removed units of such an axis can be computed by the step with one removed element
    in place of the axis.

    Args:
        rule: the rule of the step.
        outcome: the number of the outcome.
        axis: the axis of the outcome.
    """
    if rule.kind not in _FOLLOWED or rule.mesh:
        return None
    factor = _single(rule, rule.outcomes[outcome][axis], rule.outcome_shapes[outcome][axis])
    if factor is None or factor in rule.whole:
        return None
    found = {}
    for i, (dims, shape) in enumerate(zip(rule.operands, rule.operand_shapes, strict=True)):
        for a, (dim, n) in enumerate(zip(dims, shape, strict=True)):
            if factor in factors_of([dim]):
                if _single(rule, dim, n) is None:
                    return None
                found[i] = a
    return found


def _single(rule: Rule, dim: Dim, size: int) -> Factor | None:
    """Return the factor that a dimension consists of, if it is that factor in full and in order."""
    alone = rule.is_whole(dim, size) and len(dim[0].factors) == 1
    return dim[0].names[0] if alone else None
