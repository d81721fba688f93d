"""Readers and writers of the formats of other libraries, one module each."""

from nnopt_jax.interop.orbax import Checkpoints
from nnopt_jax.interop.safetensors import read_metadata, read_safetensors, write_safetensors
from nnopt_jax.interop.weights import read_npz, read_orbax, read_weights

__all__ = [
    "Checkpoints", "read_metadata", "read_npz", "read_orbax", "read_safetensors", "read_weights",
    "write_safetensors",
]  # fmt: skip
