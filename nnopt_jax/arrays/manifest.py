"""Former path of `nnopt_jax.arrays.node_description`, for imports in pruning that move next."""

from nnopt_jax.arrays.node_description import describe

__all__ = ["describe"]
