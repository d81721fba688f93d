"""Packed leaves as values of a running program."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from nnopt_jax.arrays.hooks import inputs_above
from nnopt_jax.arrays.nodes import Node, is_node
from nnopt_jax.trace.packed.deferred import Deferred
from nnopt_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaf:
    """A node in place of an array of the program, with the path of the argument it came from."""

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
            node = node.first_packed
        return type(node).__name__


def is_leaf(x: Any) -> bool:
    """Return whether a value of a program is packed."""
    return isinstance(x, Leaf)


def dense(x: Leaf | Array) -> Array:
    """Return the array that a value of a program stands for."""
    return x.node.materialize() if isinstance(x, Leaf) else x


def loosened(leaf: Leaf) -> Leaf | Array:
    """Materialize a leaf, but keep the part of it that says how its inputs are rounded."""
    loose = inputs_above(leaf.node).loosened()
    return Leaf(loose, leaf.path) if is_node(loose) else loose
