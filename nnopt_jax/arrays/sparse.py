"""Former path of `nnopt_jax.arrays.sparse_array`, for imports in pruning that move next."""

from nnopt_jax.arrays.sparse_array import Sparse

__all__ = ["Sparse"]
