"""Dense values in files of NumPy alone, so that what is expected never comes from the library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

Values = dict[str, tuple[str, np.ndarray]]
"""By path: the name of the dtype, and the array, or the unsigned integers of its bits."""


def values_of(tree: Any) -> Values:
    """Lists the arrays of a tree by path; a dtype that NumPy lacks as unsigned integers.

    Paths are JAX's own, so that names do not come from the library either.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _bits(leaf) for path, leaf in leaves
    }


def _bits(leaf: Any) -> tuple[str, np.ndarray]:
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    name = str(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return name, np.asarray(jax.random.key_data(leaf))
    array = np.ascontiguousarray(leaf).reshape(leaf.shape)
    if array.dtype.isbuiltin != 1:
        array = array.view(f"u{array.dtype.itemsize}")
    return name, array


def write_values(path: Path, tree: Any) -> None:
    """Writes the arrays of a tree as `.npz`, each under its dtype and path."""
    named = {f"{name}:{where}": array for where, (name, array) in values_of(tree).items()}
    with path.open("xb") as file:
        np.savez_compressed(file, **named)  # pyright: ignore[reportArgumentType]


def read_values(path: Path) -> Values:
    """Reads what `write_values` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        parted = {key: key.partition(":") for key in archive.files}
        return {where: (name, archive[key]) for key, (name, _, where) in parted.items()}


def array_of(name: str, bits: np.ndarray) -> np.ndarray:
    """The array whose bits these are."""
    return bits if str(bits.dtype) == name else bits.view(getattr(ml_dtypes, name, name))


def require_equal(tree: Any, wanted: Values) -> None:
    """Compares the arrays of a tree with stored ones: paths, dtypes, shapes and every bit."""
    found = values_of(tree)
    assert found.keys() == wanted.keys()
    wrong = [
        f"{path}: {found[path][0]}{found[path][1].shape}, not {name}{array.shape} of these bits"
        for path, (name, array) in wanted.items()
        if (name, array.shape, array.tobytes())
        != (found[path][0], found[path][1].shape, found[path][1].tobytes())
    ]
    assert not wrong, "\n".join(wrong)


def outline(tree: Any) -> Any:
    """The containers of a tree as JSON; every leaf is a star."""
    if isinstance(tree, dict):
        return {name: outline(child) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        return [type(tree).__name__, *map(outline, tree)]
    return None if tree is None else "*"


def array_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree take in memory, packed as they are."""
    return sum(array.nbytes for _, array in values_of(tree).values())


def sha256(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
