"""Formats of other libraries, one file each, imported when used."""

from nnopt_jax.interop.orbax import Checkpoints as Checkpoints
from nnopt_jax.interop.weights import (
    read_metadata as read_metadata,
    read_npz as read_npz,
    read_orbax as read_orbax,
    read_safetensors as read_safetensors,
    read_weights as read_weights,
    write_safetensors as write_safetensors,
)
