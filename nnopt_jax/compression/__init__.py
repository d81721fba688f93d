"""Compression: weight sharing, feature mapping, sparse representation."""

from nnopt_jax.compression.sharing.codebook import codebook as codebook
