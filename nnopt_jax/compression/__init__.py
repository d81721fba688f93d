"""Compression: weight sharing, feature mapping, sparse representation."""

from nnopt_jax.compression.feature_mapping.low_rank import low_rank as low_rank
from nnopt_jax.compression.sharing.codebook import codebook as codebook
from nnopt_jax.compression.sharing.dkm import dkm as dkm
from nnopt_jax.compression.sharing.tie import tie as tie
