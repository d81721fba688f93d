"""Former path of `nnopt_jax.arrays.nodes`, for imports in pruning that move next."""

from nnopt_jax.arrays.nodes import NODE_TYPES, Field, Node, is_node, show

__all__ = ["NODE_TYPES", "Field", "Node", "is_node", "show"]
