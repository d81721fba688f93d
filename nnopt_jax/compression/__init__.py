"""Compression: weight sharing, feature mapping, sparse representation."""

from nnopt_jax.compression.low_rank_factors import low_rank as low_rank
from nnopt_jax.compression.principal_components import pca as pca
from nnopt_jax.compression.projection import (
    Projection as Projection,
    lift as lift,
    project as project,
    projected as projected,
)
from nnopt_jax.compression.random_projection import (
    dimension as dimension,
    johnson_lindenstrauss as johnson_lindenstrauss,
)
from nnopt_jax.compression.shared_values import codebook as codebook
from nnopt_jax.compression.soft_sharing import dkm as dkm
from nnopt_jax.compression.sparse_storage import sparse as sparse
from nnopt_jax.compression.tied_leaves import tie as tie
