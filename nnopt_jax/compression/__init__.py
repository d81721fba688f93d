"""Compression: shared and tied weights, low rank, sparse storage, and projected inputs."""

from nnopt_jax.compression.low_rank_factors import low_rank
from nnopt_jax.compression.principal_components import pca
from nnopt_jax.compression.projection import (
    Projection,
    dimension,
    johnson_lindenstrauss,
    lift,
    project,
    projected,
)
from nnopt_jax.compression.shared_values import codebook, dkm
from nnopt_jax.compression.sparse_storage import sparse
from nnopt_jax.compression.tied_leaves import tie

__all__ = [
    "Projection", "codebook", "dimension", "dkm", "johnson_lindenstrauss", "lift", "low_rank",
    "pca", "project", "projected", "sparse", "tie",
]  # fmt: skip
