"""Former path of `nnopt_jax.arrays.soft_thresholded`, for imports in pruning that move next."""

from nnopt_jax.arrays.soft_thresholded import SoftThresholded as Shrunk

__all__ = ["Shrunk"]
