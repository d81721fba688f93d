"""Abstract values of the coupling analysis: labels, and contents at removed units."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.coupling.labels import Labels, LabelSets
from nnopt_jax.trace.jaxpr import Equation, line
from nnopt_jax.trace.primitives import Dim, Factor, Kind, OpRule, factors_of


class Residue(enum.Enum):
    """The content of an array at removed units, if it is not a known number."""

    ALIKE = "the same for every removed unit"
    UNKNOWN = "anything"
    BROKEN = "not a finite number, such as 0/0"


Remains = float | Residue
"""The content of an array at removed units, in the model with those units at zero."""


class Value(NamedTuple):
    """The abstract value of an array: labels of its elements, and content at removed units.

    Args:
        axes: the labels of each axis.
        remains: the content of the array at removed elements of each axis.
        constant: the number that every element equals, if known.
        parameter: whether it is made of parameters alone.
        home: the program that made it. Content that is equal for all removed units can be
            recomputed only in that program, and is unknown in others.

    Example:
        >>> Value((), (), 2.0).remains_at(0)
        2.0
    """

    axes: tuple[Labels, ...]
    remains: tuple[Remains, ...]
    constant: float | None = None
    parameter: bool = False
    home: Location = ()

    @classmethod
    def fixed(cls, sets: LabelSets, shape: Sequence[int], reason: Any) -> Value:
        """Return the value of an array that loses no elements, for the given reason."""
        labels = tuple(sets.fixed_labels(size, reason) for size in shape)
        return cls(labels, (Residue.UNKNOWN,) * len(shape))

    @classmethod
    def fresh(cls, sets: LabelSets, shape: Sequence[int], constant: float | None = None) -> Value:
        """Return the value of an array with new labels, which does not depend on parameters."""
        return cls(tuple(map(sets.new_labels, shape)), (Residue.UNKNOWN,) * len(shape), constant)

    @classmethod
    def ordered(cls, sets: LabelSets, shape: Sequence[int]) -> Value:
        """Return the value of an array whose elements differ, so that units cannot be permuted."""
        value = cls.fresh(sets, shape)
        for labels in value.axes:
            sets.mark_ordered(labels)
        return value

    @property
    def brings_no_units(self) -> bool:
        """Whether the array depends on parameters alone, is a scalar, or has one constant value."""
        return self.parameter or not self.axes or self.constant is not None

    def remains_at(self, axis: int) -> Remains:
        """Return the content at removed elements of an axis, as a number if it is known."""
        return self.remains[axis] if self.constant is None else self.constant

    def for_program(self, home: Location) -> Value:
        """Return the value for use in another program, which cannot recompute removed units."""
        if home == self.home:
            return self
        left = tuple(Residue.UNKNOWN if x is Residue.ALIKE else x for x in self.remains)
        return self._replace(remains=left, home=home)


def common_content(remains: Sequence[Remains]) -> Remains:
    """Return the content that several arrays share at removed units; unknown if they differ."""
    return remains[0] if remains and all(x == remains[0] for x in remains) else Residue.UNKNOWN


@dataclasses.dataclass(frozen=True, eq=False)
class Reason:
    """The reason why elements cannot be removed: a text and the steps that need them.

    Args:
        text: the reason in words.
        equations: the steps that enclose the one that needs them, from the outermost, and that
            step.
    """

    text: str
    equations: tuple[Equation, ...]

    def __str__(self) -> str:
        """Return the reason with the user's line, if the line is known."""
        # A program that JAX cached from an earlier call has the source line of that call.
        at = next(filter(None, map(line, reversed(self.equations))), "")
        return f"{self.text} at {at}" if at else self.text


def elementwise_content(equation: Equation, rule: OpRule, given: Sequence[Remains]) -> Remains:
    """Return the content of an elementwise step's outcome at removed units.

    Args:
        equation: the step.
        rule: the rule of its primitive.
        given: the value of each operand there.
    """
    numbers = [x for x in given if not isinstance(x, Residue)]
    zeros = [i for i in rule.absorbs if given[i] == 0.0]
    others = [x for i, x in enumerate(given) if i not in zeros and not isinstance(x, Residue)]
    # 0 * inf and 0 / 0 are NaN, so the other operands must be finite and not zero.
    if zeros and all(x and math.isfinite(x) for x in others):
        return 0.0
    if rule.chooses and not isinstance(common_content([given[i] for i in rule.data]), Residue):
        return given[rule.data[0]]
    if len(numbers) == len(given):
        params = tuple(sorted(equation.params.items()))
        dtypes = tuple(x.aval.dtype for x in equation.invars)
        return _evaluate(equation.primitive, params, dtypes, tuple(numbers))
    return Residue.UNKNOWN if Residue.UNKNOWN in given else Residue.ALIKE


@functools.lru_cache(maxsize=4096)
def _evaluate(
    primitive: Any, params: tuple, dtypes: tuple[Any, ...], numbers: tuple[float, ...]
) -> Remains:
    """Evaluate a primitive on known scalars."""
    try:
        # Within an outer `jit`, the primitive would be traced rather than computed.
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            given = [np.asarray(x).astype(d) for x, d in zip(numbers, dtypes, strict=True)]
            found = primitive.bind(*given, **dict(params))
            found = np.asarray(found[0] if primitive.multiple_results else found)
    except Exception:  # a primitive with its own shapes or mesh is not a function of scalars alone
        return Residue.ALIKE
    if found.ndim or not (jnp.issubdtype(found.dtype, jnp.floating) or found.dtype.kind in "biu"):
        return Residue.ALIKE
    return float(found) if math.isfinite(found) else Residue.BROKEN


def constant_of(
    equation: Equation, rule: OpRule, values: Sequence[Value], outcome: int
) -> float | None:
    """Return the number that every element of an outcome equals; None if unknown."""
    constants = [values[i].constant for i in rule.sources_of(outcome) if i in rule.data]
    if rule.kind is Kind.REDUCTION:
        return 0.0 if rule.absorbs and constants == [0.0] else None
    if rule.kind is Kind.ELEMENTWISE:
        constants = [value.constant for value in values]
        if None in constants:
            return None
        found = elementwise_content(equation, rule, constants)  # pyright: ignore[reportArgumentType]
        return None if isinstance(found, Residue) else found
    if rule.kind is not Kind.MOVEMENT or rule.mesh or None in constants or not constants:
        return None
    return constants[0] if len(set(constants)) == 1 else None


def content_along(
    equation: Equation, rule: OpRule, values: Sequence[Value], left: Mapping[int, Remains],
    counted: bool,
) -> Remains:  # fmt: skip
    """Return the content of an outcome at the removed elements of one factor of the step.

    Args:
        equation: the step.
        rule: the rule of its primitive.
        values: its operands.
        left: the values at removed elements of the operands that have the factor, by number.
        counted: whether the step sums over other removed elements, which are not zero.
    """
    kind = rule.kind
    if kind is Kind.ELEMENTWISE:
        others = [Residue.ALIKE if x.constant is None else x.constant for x in values]
        return elementwise_content(equation, rule, [left.get(i, x) for i, x in enumerate(others)])
    own = [remains for i, remains in left.items() if i not in rule.chooses]
    if kind is Kind.MOVEMENT:
        # A movement without the factor in its operand, such as a broadcast, repeats entries.
        repeated = Residue.ALIKE if values[0].constant is None else values[0].constant
        return common_content(own) if own else repeated
    if kind is Kind.CONTRACTION:
        # Removed weights are zero, and so is every product with them.
        if 0.0 in own:
            return 0.0
        return Residue.UNKNOWN if Residue.UNKNOWN in own else Residue.ALIKE
    if any(i in left for i in rule.chooses) or not own:
        return Residue.UNKNOWN
    if kind is Kind.LOOKUP:
        return own[0]
    if kind is Kind.UPDATE or rule.absorbs:
        if common_content(own) == 0.0:
            return 0.0
        alike = kind is Kind.REDUCTION and not counted and Residue.UNKNOWN not in own
        return Residue.ALIKE if alike else Residue.UNKNOWN
    return Residue.UNKNOWN


_FOLLOWED = (Kind.ELEMENTWISE, Kind.MOVEMENT, Kind.CONTRACTION, Kind.REDUCTION)


def same_axes(rule: OpRule, outcome: int, axis: int) -> dict[int, int] | None:
    """Return the axis of each operand that shares its full factor with an axis of an outcome.

    The content at removed units of such an axis can be computed by running the step on one removed
    element instead of the whole axis.

    Args:
        rule: the rule of the step.
        outcome: the number of the outcome.
        axis: the axis of the outcome.
    """
    if rule.kind not in _FOLLOWED or rule.mesh:
        return None
    factor = _sole_factor(rule, rule.outcomes[outcome][axis], rule.outcome_shapes[outcome][axis])
    # A step that needs the whole axis cannot be computed for one element.
    if factor is None or factor in rule.whole:
        return None
    found = {}
    for i, (dims, shape) in enumerate(zip(rule.operands, rule.operand_shapes, strict=True)):
        for a, (dim, n) in enumerate(zip(dims, shape, strict=True)):
            if factor in factors_of([dim]):
                if _sole_factor(rule, dim, n) is None:
                    return None
                found[i] = a
    return found


def _sole_factor(rule: OpRule, dim: Dim, size: int) -> Factor | None:
    """Return the factor that alone runs over a dimension, in full and in order; else None."""
    alone = rule.is_whole(dim, size) and len(dim[0].factors) == 1
    return dim[0].names[0] if alone else None
