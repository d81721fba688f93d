"""Execution of loops, branches and calls on packed leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, move
from nnopt_jax.arrays.nodes import is_spec
from nnopt_jax.trace.control import Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.trace.packed.deferred import Deferred
from nnopt_jax.trace.packed.leaf import Leaf, dense, is_leaf, loosened
from nnopt_jax.trace.packed.packed_movement import Movement
from nnopt_jax.trace.primitives import rule_of
from nnopt_jax.trace.probed import probed
from nnopt_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class InsidePacked(Inside):
    """An interpreter of the programs inside of a step, with packed leaves as values.

    Args:
        equation: the step.
        compute: runs a program.
        seen: called with a leaf, the step that uses it, and the reason if it is materialized there.
    """

    equation: Equation
    compute: Callable[[Program, Sequence[Any]], list[Any]]
    seen: Callable[[Leaf, Equation, str], None]

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Any]:
        """Compute a program; it may return packed leaves."""
        return self.compute(program, values), ()

    def dense(self, values: Sequence[Any]) -> list[Array]:
        """Materialize packed leaves that a loop carries or a program returns."""
        for value in values:
            if is_leaf(value):
                self.seen(value, self.equation, "a program inside gives or carries arrays")
        return [dense(value) for value in values]

    def slices(self, value: Any) -> Slices:
        """Return the slices of a packed leaf, packed if each of its parts can be sliced."""
        if not is_leaf(value):
            return Slices(value, lambda part, _: part)
        if _layer(value, 0) is None:
            self.seen(value, self.equation, "a part of it cannot follow")
            value = loosened(value)
            if not is_leaf(value):
                return Slices(value, lambda part, _: part)
        # The weight that gradients are taken at is sliced by the loop, which stacks its gradients.
        stack, shown = _apart(value)
        return Slices(shown, lambda part, number: _together(_layer(stack, number), part))

    def cut(self, value: Any, spec: PartitionSpec, mesh: Any) -> tuple[Any, Any]:
        """Shard a packed leaf part by part if all its parts can be; else materialize it."""
        if not is_leaf(value):
            return value, spec
        node = value.node
        if isinstance(node, Deferred):  # its step belongs to the mesh that it was traced under
            self.seen(value, self.equation, "it is computed before it is cut")
            return dense(value), spec
        specs = node.specs(spec, mesh)
        whole = node.specs(spec)  # without a mesh no axis is left out for an indivisible size
        same = jax.tree.leaves(specs, is_leaf=is_spec) == jax.tree.leaves(whole, is_leaf=is_spec)
        if same and node.follows_parts:
            return value, Leaf(specs, value.path)
        self.seen(value, self.equation, "a part of it cannot be cut")
        return dense(value), spec


def _layer(leaf: Leaf, number: Any) -> Leaf | None:
    """Return one entry on the first axis of a leaf; None if a part of the node cannot be sliced."""
    one, node = (1, *leaf.shape[1:]), leaf.node
    starts = (number, *[0] * (len(one) - 1))
    array = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    try:
        if leaf.shape[0] != 1:
            index = jax.ShapeDtypeStruct((), jnp.int32)
            cut = probed(lambda x, *at: lax.dynamic_slice(x, at, one), array, *[index] * len(one))
            node = move(node, Movement(cut, rule_of(cut), [None, *starts], 0), leaf.shape)
        entry = jax.ShapeDtypeStruct(one, leaf.dtype)
        squeeze = probed(lambda x: lax.squeeze(x, [0]), entry)
        node = move(node, Movement(squeeze, rule_of(squeeze), [None], 0), one)
    except CannotStayPacked:
        return None
    return Leaf(node, leaf.path)


def _apart(leaf: Leaf) -> tuple[Leaf, Array | None]:
    """Separate a leaf from the weight that gradients are taken at."""
    name = leaf.node.GRADIENT_AT
    shown = getattr(leaf.node, name) if name else None
    return (leaf, None) if shown is None else (_with_shown(leaf, None), shown)


def _together(leaf: Leaf | None, shown: Array | None) -> Leaf | None:
    return leaf if leaf is None or shown is None else _with_shown(leaf, shown)


def _with_shown(leaf: Leaf, shown: Array | None) -> Leaf:
    return Leaf(leaf.node.replace(**{leaf.node.GRADIENT_AT: shown}), leaf.path)
