"""A builder of rules, which numbers factors and composes dimensions of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.places import Dim, Factor, Place, axis
from nnopt_jax.trace.primitives.primitive_rule import Kind, OpRule, Shape


def shape_of(variable: Any) -> Shape:
    """Return the shape of an operand or outcome; a token counts as a scalar."""
    return tuple(getattr(variable.aval, "shape", ()))


class Draft:
    """A builder of the rule of one equation.

    Args:
        equation: the equation.

    Example:
        A primitive that sums its operand over the last axis.

        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.primitives import Draft, Kind, axis
        >>> equation = jax.make_jaxpr(lambda x: x.sum(-1))(jnp.ones((2, 3))).jaxpr.eqns[0]
        >>> draft = Draft(equation)
        >>> rows, columns = draft.factors(draft.operand_shapes[0])
        >>> rule = draft.rule(Kind.REDUCTION, [[axis(rows), axis(columns)]], [[axis(rows)]])
        >>> print(rule)
        reduction: (0, 1) -> (0); sizes 2, 3
    """

    def __init__(self, equation: Equation):
        self.equation = equation
        self.operand_shapes = tuple(map(shape_of, equation.invars))
        self.outcome_shapes = tuple(map(shape_of, equation.outvars))
        self.sizes: list[int] = []

    def factor(self, size: int) -> Factor:
        """Add a factor of this size, and return its number."""
        self.sizes.append(int(size))
        return len(self.sizes) - 1

    def factors(self, shape: Sequence[int]) -> list[Factor]:
        """Add a factor for each axis of a shape, and return their numbers."""
        return [self.factor(size) for size in shape]

    def mixed(self, *factors: Factor) -> Dim:
        """Return a dimension that several factors index, from major to minor."""
        sizes = [self.sizes[factor] for factor in factors]
        strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        return (Place(tuple(zip(factors, strides, strict=True))),)

    def unshared(self, operand: int) -> list[Dim]:
        """Return dimensions with new factors, for an operand that shares no axes with others."""
        return axes(self.factors(self.operand_shapes[operand]))

    def rule(
        self, kind: Kind, operands: Sequence[Sequence[Dim]], outcomes: Sequence[Sequence[Dim]],
        **facts: Any,
    ) -> OpRule:  # fmt: skip
        """Return the rule of the equation, with these dimensions and facts.

        Args:
            kind: what the primitive computes.
            operands: the dimensions of each operand.
            outcomes: the dimensions of each outcome.
            **facts: the other fields of `OpRule`.

        Raises:
            ValueError: the number of dimensions differs from the number of axes.
        """
        for dims, shapes, what in (
            (operands, self.operand_shapes, "operand"),
            (outcomes, self.outcome_shapes, "outcome"),
        ):
            if [len(each) for each in dims] != [len(shape) for shape in shapes]:
                raise ValueError(
                    f"{self.equation.primitive.name}: the rule has {what}s of "
                    f"{[len(each) for each in dims]} dimensions, the equation of "
                    f"{[len(shape) for shape in shapes]}; give each {what} one entry for each axis"
                )
        return OpRule(
            kind,
            tuple(self.sizes),
            tuple(map(tuple, operands)),
            tuple(map(tuple, outcomes)),
            self.operand_shapes,
            self.outcome_shapes,
            **facts,
        )


def axes(factors: Sequence[Factor]) -> list[Dim]:
    """Return one dimension for each factor, which runs over all of it."""
    return [axis(factor) for factor in factors]


def opaque_rule(equation: Equation, shared: int = 0, **facts: Any) -> OpRule:
    """Return the rule of an equation whose primitive is not known, or shares only batch axes.

    Args:
        equation: any equation.
        shared: the number of leading batch axes that all operands and outcomes share.
        **facts: further fields of `OpRule`; `kind` takes the place of `Kind.OPAQUE`.
    """
    draft = Draft(equation)
    # Shared leading axes get one factor each, all other axes a factor of their own.
    first = draft.factors((draft.operand_shapes or draft.outcome_shapes or ((),))[0][:shared])
    sides = [
        [axes(first + draft.factors(shape[shared:])) for shape in shapes]
        for shapes in (draft.operand_shapes, draft.outcome_shapes)
    ]
    whole = frozenset(range(len(first), len(draft.sizes)))
    return draft.rule(facts.pop("kind", Kind.OPAQUE), *sides, whole=whole, **facts)
