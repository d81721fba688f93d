"""Compression: weight sharing, feature mapping, sparse representation."""

from nnopt_jax.compression.feature_mapping.johnson_lindenstrauss import (
    dimension as dimension,
    johnson_lindenstrauss as johnson_lindenstrauss,
)
from nnopt_jax.compression.feature_mapping.low_rank import low_rank as low_rank
from nnopt_jax.compression.feature_mapping.pca import pca as pca
from nnopt_jax.compression.feature_mapping.projection import (
    Projection as Projection,
    lift as lift,
    project as project,
    projected as projected,
)
from nnopt_jax.compression.sharing.codebook import codebook as codebook
from nnopt_jax.compression.sharing.dkm import dkm as dkm
from nnopt_jax.compression.sharing.tie import tie as tie
from nnopt_jax.compression.sparse_representation.sparse import sparse as sparse
