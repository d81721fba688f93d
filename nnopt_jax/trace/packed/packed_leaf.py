"""Packed leaves as values of a running program, and steps that are computed when needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.hooks import CannotStayPacked, Moves, inputs_above, move
from nnopt_jax.arrays.nodes import Field, Node, is_node, materialize
from nnopt_jax.trace.jaxpr import Equation, bind
from nnopt_jax.trace.primitives import Kind, OpRule
from nnopt_jax.typing import Array, Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Deferred(Node):
    """A step on packed leaves whose computation waits until its outcome is needed as an array.

    Until then, the leaves keep their codes, for example in the residuals of `jax.checkpoint` and in
    the layers of a scan. Moving the outcome of an elementwise step moves its operands: a slice of
    `exp(w)` is `exp` of a slice.

    A deferred step exists only while a function runs on packed parameters, never in a file or a
    tree.

    Attributes:
        operands: nodes and arrays.
        equation: the step.
        is_elementwise: whether all operands that have axes have the shape of the outcome, and
            each entry of the outcome depends on the entries at the same index.
    """

    operands: tuple[Field, ...]
    equation: Equation = dataclasses.field(metadata={"static": True})
    is_elementwise: bool = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the step's outcome."""
        if self.is_elementwise:  # operands may have been moved, which changes the shape
            return jnp.broadcast_shapes(*(tuple(jnp.shape(x)) for x in self.operands))
        return tuple(self.equation.outvars[0].aval.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the step's outcome."""
        return self.equation.outvars[0].aval.dtype

    def materialize(self) -> Array:
        """Compute the step, and return its outcome."""
        return bind(self.equation, [*map(materialize, self.operands)])[0]

    @property
    def is_streamed(self) -> bool:
        """Whether sums over the outcome need no dense array, as sums over each packed operand."""
        return all(x.is_streamed for x in self.operands if is_node(x))

    def move(self, movement: Moves, shape: Shape) -> Self:
        """Move (transpose, slice) the operands of an elementwise step instead of its outcome."""
        if not self.is_elementwise or movement.fills:  # the step would apply to the fill value too
            raise CannotStayPacked("it is computed before it is moved")
        moved = [move(x, movement, shape) if x.ndim else x for x in self.operands]
        return self.replace(operands=tuple(moved))


def defer(equation: Equation, rule: OpRule, operands: Sequence[Field]) -> Deferred | None:
    """Return a `Deferred` in place of a step; None if waiting would save no memory.

    A deferred step also keeps its array operands. If they are as large as the outcome, deferral
    saves no memory, and the step is computed at once.

    Args:
        equation: the step.
        rule: its rule.
        operands: arrays and nodes.
    """
    if len(rule.outcomes) != 1 or rule.kind not in _KINDS or not is_node(_data(operands)):
        return None
    (shape,) = rule.outcome_shapes
    arrays = sum(jnp.size(x) for x in operands if not is_node(x) and jnp.ndim(x))
    if arrays >= (1 if rule.kind is Kind.ELEMENTWISE else math.prod(shape)):
        return None
    # Axes of size 1 may broadcast, and a movement of the outcome does not apply to such an operand.
    alike = all(operand in ((), shape) for operand in rule.operand_shapes)
    kept = tuple(x if is_node(x) else jnp.asarray(x) for x in operands)
    return Deferred(kept, equation, alike and rule.kind is Kind.ELEMENTWISE)


_KINDS = (Kind.ELEMENTWISE, Kind.ORDERED, Kind.UPDATE)


def _data(operands: Sequence[Field]) -> Field:
    """Return the first operand that is not a scalar; None if all are."""
    return next((x for x in operands if is_node(x) or jnp.ndim(x)), None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedLeaf:
    """A node in place of an array of the program, with the path of its argument."""

    node: Node
    path: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that the node stands for."""
        return tuple(self.node.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the array that the node stands for."""
        return self.node.dtype

    @property
    def form(self) -> str:
        """The name of the node's class; for a deferred step, that of its first packed operand."""
        node = self.node
        while isinstance(node, Deferred):
            node = next(x for x in node.operands if is_node(x))
        return type(node).__name__


def is_leaf(x: Any) -> bool:
    """Return whether a value of a program is a packed leaf rather than an array."""
    return isinstance(x, PackedLeaf)


def as_array(x: PackedLeaf | Array) -> Array:
    """Return the array that a value of a program stands for."""
    return x.node.materialize() if isinstance(x, PackedLeaf) else x


def unpack(leaf: PackedLeaf) -> PackedLeaf | Array:
    """Materialize the weight of a leaf; its products still round their inputs if they did."""
    loose = inputs_above(leaf.node).loosened()
    return PackedLeaf(loose, leaf.path) if is_node(loose) else loose
