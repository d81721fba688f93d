"""Files of weights of other libraries, as flat dictionaries of arrays."""

from nnopt_jax.interop.weights.npz import read_npz as read_npz
from nnopt_jax.interop.weights.orbax_step import read_orbax as read_orbax
from nnopt_jax.interop.weights.read import read_weights as read_weights
from nnopt_jax.interop.weights.safetensors import (
    read_metadata as read_metadata,
    read_safetensors as read_safetensors,
    write_safetensors as write_safetensors,
)
