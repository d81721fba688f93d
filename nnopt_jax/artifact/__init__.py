"""Small files: an entropy coder, a container, and a loader that needs no model code."""

from nnopt_jax.artifact.file import load, save
from nnopt_jax.artifact.inspection import Inspection, LeafSize, inspect, sizes
from nnopt_jax.errors import former_names

__all__ = ["Inspection", "LeafSize", "inspect", "load", "save", "sizes"]

__getattr__ = former_names("nnopt_jax.artifact", {"Row": "nnopt_jax.artifact.LeafSize"})
