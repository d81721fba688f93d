"""Pruning: by sparsity, by importance, at random."""

from nnopt_jax.pruning.importance.magnitude import magnitude as magnitude
