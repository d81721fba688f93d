"""Former path of `nnopt_jax.arrays.mask_format`, for imports in pruning that move next."""

from nnopt_jax.arrays.mask_format import Format, Roles, n_of_m, shape_misfit

__all__ = ["Format", "Roles", "n_of_m", "shape_misfit"]
