"""Read weights of any format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.artifact import load
from nnopt_jax.errors import ArtifactError, ValueRangeError
from nnopt_jax.interop.weights.npz import read_npz
from nnopt_jax.interop.weights.orbax_step import read_orbax
from nnopt_jax.interop.weights.safetensors import INDEX, read_safetensors
from nnopt_jax.tree.paths import flatten


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read weights by name, whatever kind of file or folder holds them.

    By content, not by the ending of the name: safetensors (a file, an index, a folder of shards),
    `.npz`, `.nnopt` (leaves stay packed), a step of orbax.

    Args:
        path: the file or folder.

    Returns:
        Arrays or expressions by name, ready to be the source of `transfer.graft`.

    Raises:
        ArtifactError: there is no such file, it is damaged, or of another kind.
        ValueRangeError: `path` is not a path.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.interop import read_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nnopt.save(f"{folder}/model.nnopt", {"dense": {"kernel": jnp.ones(2)}})
        ...     read_weights(f"{folder}/model.nnopt")
        {'dense/kernel': Array([1., 1.], dtype=float32)}
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueRangeError(
            f"read_weights: path is of type {type(path).__name__}; give the name of a file or "
            "folder, 'model.safetensors'."
        )
    place = Path(path)
    if place.is_dir():
        holds = any(place.glob("*.safetensors")) or any(place.glob(f"*{INDEX}"))
        return read_safetensors(place) if holds else read_orbax(place)
    try:
        with open(place, "rb") as file:
            start = file.read(17)
    except OSError as error:
        raise ArtifactError(f"read_weights: {place}: {error.strerror or error}.") from error
    if start[8:] == b'{"nnopt":':
        return flatten(load(place), is_node)
    if place.name.endswith(INDEX) or start[8:9] == b"{":
        return read_safetensors(place)
    if start[:4] != b"PK\x03\x04":
        raise ArtifactError(
            f"read_weights: {place}: is neither safetensors, npz, .nnopt nor a folder of orbax. "
            "Of a pickle of PyTorch, write safetensors first."
        )
    return read_npz(place)
