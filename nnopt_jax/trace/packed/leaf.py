"""A packed leaf on its way through a program."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from nnopt_jax.arrays.base import Node, is_node
from nnopt_jax.arrays.hooks import inputs_above
from nnopt_jax.trace.packed.deferred import Deferred
from nnopt_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaf:
    """A node where the program has an array, and the path that it came in by."""

    node: Node
    path: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array the node stands for."""
        return tuple(self.node.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the array the node stands for."""
        return self.node.dtype

    @property
    def form(self) -> str:
        """The class of the node; of steps that are not computed yet, of what they were given."""
        node = self.node
        while isinstance(node, Deferred):
            node = node.first_packed
        return type(node).__name__


def is_leaf(x: Any) -> bool:
    """Whether a value of a program is packed."""
    return isinstance(x, Leaf)


def dense(x: Leaf | Array) -> Array:
    """The array that a value of a program stands for."""
    return x.node.materialize() if isinstance(x, Leaf) else x


def loosened(leaf: Leaf) -> Leaf | Array:
    """The array of a leaf; where the leaf says how its inputs are rounded, that is still said."""
    loose = inputs_above(leaf.node).loosened()
    return Leaf(loose, leaf.path) if is_node(loose) else loose
