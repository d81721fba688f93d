"""The rule of an equation: how its operands and outcomes are indexed, and what it computes."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.places import Dim, Factor, Place

Shape = tuple[int, ...]
Dims = tuple[Dim, ...]


class Kind(enum.Enum):
    """The kind of computation that a primitive does.

    Example:
        >>> from nnopt_jax.trace.primitives import Kind
        >>> Kind("contraction")
        <Kind.CONTRACTION: 'contraction'>
    """

    ELEMENTWISE = "elementwise"
    """An entry of the outcome depends on the entries of the operands with the same factors."""
    MOVEMENT = "movement"
    """An entry of the outcome is an entry of an operand, usually at a statically known index."""
    CONTRACTION = "contraction"
    """Products of the entries of two operands are summed."""
    REDUCTION = "reduction"
    """Entries are combined in any order."""
    ORDERED = "ordered"
    """An axis is needed whole and in its order: sort, cumulative sums, windows."""
    LOOKUP = "lookup"
    """Entries of an operand are looked up by indices."""
    UPDATE = "update"
    """Entries of an operand are replaced or changed at given indices."""
    MADE = "made"
    """Entries are generated from their positions or from random keys."""
    OPAQUE = "opaque"
    """Nothing is known but the factors that operands and outcomes share."""


class Same(enum.Enum):
    """The relation of the entries of an outcome to those of the operand that they come from."""

    IDENTITY = "identity"
    """Both entries are equal."""
    CAST = "cast"
    """The entry of the outcome is rounded to another dtype or precision."""
    SCALED = "scaled"
    """The entry of the outcome is multiplied by one number that all entries share."""
    NO = "no"
    """The entry of the outcome is any other function of the operands."""


class Flops(NamedTuple):
    """The operations that XLA counts for each of `OpRule.points`.

    Args:
        operations: additions, multiplications, comparisons, casts.
        transcendentals: exponentials, roots and the like.
    """

    operations: int = 0
    transcendentals: int = 0


class Flat(NamedTuple):
    """Axes of a reshape that hold the same entries in order, but cannot share factors.

    Args:
        operand: consecutive axes of the operand.
        outcome: consecutive axes of the outcome.
    """

    operand: tuple[int, ...]
    outcome: tuple[int, ...]


Resize = Callable[[Sequence[Shape], Sequence[Shape]], dict[str, Any]]
"""A function of new operand and outcome shapes that returns the parameters that change."""


@dataclasses.dataclass(frozen=True)
class OpRule:
    """The rule of one equation: factors, and how its operands and outcomes are indexed by them.

    On each dimension, an entry has the index `start + sum(stride * i)`, where `i` runs over
    factors. A factor of an operand and an outcome passes through; a factor without an outcome is
    reduced; one without an operand is repeated; one of two operands and the outcome is a batch.

    Args:
        kind: what the primitive computes.
        sizes: the size of each factor.
        operands: the dimensions of each operand.
        outcomes: the dimensions of each outcome.
        operand_shapes: the shape of each operand.
        outcome_shapes: the shape of each outcome.
        whole: factors that are needed whole and in their order.
        chooses: operands that only choose: indices, predicates, starts, group sizes.
        absorbs: operands whose zeros make the outcome zero, if the others are finite, not zero.
        neutral: the value of entries that a reduction may ignore; None if there is none.
        flops: the cost of one of `points`; None if that is not known.
        flat: axes that hold the same entries without common factors.
        same: the relation of entries of the outcome to those of the operand.
        fills: the operand that holds the value of entries outside of all places (in a pad).
        sources: for each outcome the operands that it depends on; None for all.
        mesh: names of the mesh axes whose devices exchange entries.
        resize: a function that returns the parameters of the equation for other shapes; None if
            they contain no sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.trace.primitives import rule_of
        >>> product = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> rule = rule_of(product.jaxpr.eqns[0])
        >>> rule.sizes, rule.reduced, rule.operations
        ((2, 3, 4), frozenset({1}), 48)
        >>> print(rule)
        contraction: (0, 1), (1, 2) -> (0, 2); sizes 2, 3, 4
    """

    kind: Kind
    sizes: tuple[int, ...]
    operands: tuple[Dims, ...]
    outcomes: tuple[Dims, ...]
    operand_shapes: tuple[Shape, ...]
    outcome_shapes: tuple[Shape, ...]
    whole: frozenset[Factor] = frozenset()
    chooses: tuple[int, ...] = ()
    absorbs: tuple[int, ...] = ()
    neutral: float | None = None
    flops: Flops | None = None
    flat: tuple[Flat, ...] = ()
    same: Same = Same.NO
    fills: int | None = None
    sources: tuple[tuple[int, ...], ...] | None = None
    mesh: tuple[str, ...] = ()
    resize: Resize | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        sides = (", ".join(map(_text, side)) for side in (self.operands, self.outcomes))
        return f"{self.kind.value}: {' -> '.join(sides)}; sizes {', '.join(map(str, self.sizes))}"

    @property
    def data(self) -> tuple[int, ...]:
        """The operands whose entries reach the outcomes, unlike indices, predicates and sizes."""
        return tuple(i for i in range(len(self.operands)) if i not in self.chooses)

    def sources_of(self, outcome: int) -> Sequence[int]:
        """Return the operands that an outcome depends on."""
        return range(len(self.operands)) if self.sources is None else self.sources[outcome]

    @property
    def reduced(self) -> frozenset[Factor]:
        """The reduced factors: those of the data operands that are in no outcome."""
        kept = factors_of(*self.outcomes) | self._flat_factors
        return factors_of(*(self.operands[i] for i in self.data)) - kept

    @property
    def points(self) -> int:
        """The number of times that `flops` are counted.

        - A contraction: once for each product that it sums, without those at holes.
        - A reduction or window: once for each step that combines `n` entries in `n - 1`.
        - An update: once for each entry of the updates (the last operand).
        - All others: once for each entry of the first outcome.
        """
        size = math.prod(self.outcome_shapes[0]) if self.outcome_shapes else 0
        if self.kind is Kind.UPDATE:
            return math.prod(self.operand_shapes[-1])
        if self.kind is Kind.CONTRACTION:
            return self._products()
        if self.kind is Kind.REDUCTION or (self.kind is Kind.ORDERED and self.reduced):
            every = math.prod(self.sizes[f] for f in self._iterated)
            return max(every - size, 0) * len(self.outcomes)
        return size

    @property
    def products(self) -> int:
        """The number of products that a contraction sums; zero for all other kinds."""
        return self.points if self.kind is Kind.CONTRACTION else 0

    @property
    def operations(self) -> int | None:
        """The number of operations of the equation; None if not known."""
        return None if self.flops is None else self.points * self.flops.operations

    @property
    def transcendentals(self) -> int | None:
        """The number of transcendental functions of the equation; None if not known."""
        return None if self.flops is None else self.points * self.flops.transcendentals

    def pair(self, operand: int = 0, outcome: int = 0) -> tuple[tuple[Place, ...], ...] | None:
        """Return the places of an operand and of an outcome that hold the same entries.

        The outcome of a concatenation has one place for each operand; the place of this operand is
        returned. A later operand overwrites an entry at the same index.

        Args:
            operand: the position of the operand.
            outcome: the position of the outcome.

        Returns:
            One place for each dimension of the operand and one for each of the outcome; None if the
            outcome does not depend on the operand.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from nnopt_jax.trace.primitives import rule_of
            >>> beside = jax.make_jaxpr(lambda x, y: jnp.concatenate([x, y]))
            >>> rule = rule_of(beside(jnp.ones(2), jnp.ones(3)).jaxpr.eqns[0])
            >>> rule.pair(1)[1]
            (Place(factors=((1, 1),), start=2, holes=1),)
        """
        if operand not in self.sources_of(outcome):
            return None
        ours, theirs = self.operands[operand], self.outcomes[outcome]
        mine, its = factors_of(ours), factors_of(theirs)
        before = [_shared_place(d, its, mine & factors_of(*self.outcomes), outcome) for d in ours]
        after = [_shared_place(d, mine, its & factors_of(*self.operands), operand) for d in theirs]
        if any(place is None for place in (*before, *after)):
            return None
        return tuple(before), tuple(after)  # pyright: ignore[reportReturnType]

    @property
    def permutation(self) -> Shape | None:
        """The permutation of axes, if the equation is only a transpose; else None."""
        if self.same is not Same.IDENTITY or self.sources is not None or self.whole:
            return None
        if len(self.data) != 1 or len(self.outcomes) != 1 or self.flat:
            return None
        ours, theirs = self.operands[self.data[0]], self.outcomes[0]
        shape = self.operand_shapes[self.data[0]]
        if not all(self.is_whole(dim, n) for dim, n in zip(ours, shape, strict=True)):
            return None
        # Equal dimensions, such as two of size 1, do not determine a permutation.
        if len(set(ours)) != len(ours) or len(ours) != len(theirs) or set(ours) != set(theirs):
            return None
        return tuple(ours.index(dim) for dim in theirs)

    @property
    def is_identity(self) -> bool:
        """Whether each outcome equals the operand at the same position."""
        count = len(self.outcomes)
        return (
            self.same is Same.IDENTITY
            and self.operands[:count] == self.outcomes
            and self.operand_shapes[:count] == self.outcome_shapes
        )

    def is_whole(self, dim: Dim, size: int) -> bool:
        """Return whether a dimension of this size is a single place that covers it in order."""
        return len(dim) == 1 and dim[0].covers(size, self.sizes)

    def kept_last(self, operand: int = 0, outcome: int = 0) -> int:
        """Return the number of last axes that remain last, complete and in order.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from nnopt_jax.trace.primitives import rule_of
            >>> turned = jax.make_jaxpr(lambda x: x.transpose(1, 0, 2))(jnp.ones((2, 3, 4)))
            >>> rule_of(turned.jaxpr.eqns[0]).kept_last()
            1
        """
        ours = zip(self.operands[operand], self.operand_shapes[operand], strict=True)
        theirs = zip(self.outcomes[outcome], self.outcome_shapes[outcome], strict=True)
        count = 0
        # From the last axis backwards, until an axis is moved, cut or resized.
        for (dim, n), (other, m) in zip(reversed([*ours]), reversed([*theirs]), strict=False):
            if dim != other or n != m or not self.is_whole(dim, n):
                break
            count += 1
        return count

    def resized(
        self, equation: Equation, operands: Sequence[Shape], outcomes: Sequence[Shape]
    ) -> Equation:
        """Return the equation with its parameters changed to fit other shapes.

        Args:
            equation: the equation that the rule was made from.
            operands: the new shapes of the operands.
            outcomes: the new shapes of the outcomes.
        """
        if self.resize is None:
            return equation
        changed: Mapping[str, Any] = self.resize(operands, outcomes)
        return equation.replace(params={**equation.params, **changed})

    @property
    def _iterated(self) -> frozenset[Factor]:
        return factors_of(*(self.operands[i] for i in self.data), *self.outcomes)

    @property
    def _flat_factors(self) -> frozenset[Factor]:
        ours = [self.operands[0][a] for flat in self.flat for a in flat.operand]
        theirs = [self.outcomes[0][a] for flat in self.flat for a in flat.outcome]
        return factors_of(ours, theirs)

    def _products(self) -> int:
        """Count the products of a contraction, without those at the holes of a dilated image."""
        # A dilated image has entries only at multiples of the dilation.
        left, count = set(self._iterated), 1
        for dim in self.operands[0]:
            for place in dim:
                if place.holes != 1:
                    count *= int((place.indices(self.sizes) % place.holes == 0).sum())
                    left -= set(place.names)
        return count * math.prod(self.sizes[f] for f in left)


MakeRule = Callable[[Equation], OpRule]
"""A function that makes the rule of an equation."""


def factors_of(*arrays: Sequence[Dim]) -> frozenset[Factor]:
    """Return the factors that occur in the dimensions of some arrays.

    Example:
        >>> from nnopt_jax.trace.primitives import axis, factors_of
        >>> factors_of([axis(0), axis(2)])
        frozenset({0, 2})
    """
    return frozenset(f for dims in arrays for dim in dims for place in dim for f in place.names)


def _shared_place(
    dim: Dim, shared: frozenset[Factor], elsewhere: frozenset[Factor], number: int
) -> Place | None:
    """Return the place of a dimension that shares its factors with the other array.

    In a stack, whose places are single indices, this is the place with the number of the array.
    """
    if len(dim) == 1:
        return dim[0]
    if not any(place.factors for place in dim):
        return dim[number]
    # Places that share all factors come before those that share some or none.
    own = [place for place in dim if place.factors and shared.issuperset(place.names)]
    free = [place for place in dim if not elsewhere.intersection(place.names)]
    mixed = [place for place in dim if shared.intersection(place.names)]
    return next(iter((*own, *mixed, *free)), None)


def _text(dims: Dims) -> str:
    each = ("+".join("*".join(map(str, place.names)) or "1" for place in dim) for dim in dims)
    return f"({', '.join(each)})"
