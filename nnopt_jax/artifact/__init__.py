"""Small files: an entropy coder, a container, and a loader that needs no model code."""

from nnopt_jax.artifact.file import load, save
from nnopt_jax.artifact.inspection import Inspection, LeafSize, inspect, sizes

__all__ = ["Inspection", "LeafSize", "inspect", "load", "save", "sizes"]


def __getattr__(name: str) -> object:
    """Raise an error that maps a former name to the new one."""
    if name == "Row":
        raise AttributeError("nnopt_jax.artifact.Row is now nnopt_jax.artifact.LeafSize")
    raise AttributeError(f"module 'nnopt_jax.artifact' has no attribute {name!r}")
