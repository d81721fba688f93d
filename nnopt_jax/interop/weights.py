"""Readers of weights in any format: safetensors, NumPy archives, `.nnopt` files, orbax steps."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.artifact import load
from nnopt_jax.errors import ArtifactError, CheckpointError, Problems, ValueRangeError
from nnopt_jax.interop.orbax import Checkpoints, one_error
from nnopt_jax.interop.safetensors import INDEX, read_safetensors
from nnopt_jax.tree.paths import flatten

# zipfile raises RuntimeError (such as NotImplementedError) for some flipped bits.
_DAMAGED = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_TREE = "_METADATA"


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read weights by name from a file or folder of any supported format.

    The format is detected by content, not by the ending of the name: safetensors (a file, an index,
    or a folder of shards), `.npz`, `.nnopt` (leaves stay packed), or an orbax step.

    Args:
        path: the file or folder.

    Returns:
        Arrays or packed parameters by name, ready to be the source of `transfer.graft`.

    Raises:
        ArtifactError: the file does not exist, is damaged, or has another format.
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


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by name.

    NumPy stores `bfloat16` as unknown data of two bytes, so such arrays are read as `bfloat16`.
    Pickles are never read. All arrays are read at once, and their checksums are verified.

    Args:
        path: a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    Returns:
        Arrays by name, in the file's order, ready to be the source of `transfer.graft`.

    Raises:
        ArtifactError: the file does not exist or is damaged, or an array has Python objects or
            unknown data; all such arrays are named.

    Example:
        >>> import tempfile, numpy as np
        >>> from nnopt_jax.interop import read_npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", **{"dense/kernel": np.ones(2, np.int8)})
        ...     read_npz(f"{folder}/a.npz")
        {'dense/kernel': array([1, 1], dtype=int8)}
    """
    who = f"read_npz: {os.fspath(path)}"
    problems, arrays = Problems(who), {}
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ArtifactError(f"{who}: holds one array without a name; numpy.load() it.")
            if any(name.endswith("data.pkl") for name in archive.files):
                raise ArtifactError(f"{who}: is a pickle of PyTorch; write safetensors first.")
            for name in archive.files:
                try:
                    arrays[name] = _typed(archive[name])
                except _DAMAGED as error:
                    problems.add(name, f"cannot be read: {error}")
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{who}: {getattr(error, 'strerror', None) or error}") from error
    problems.raise_as(ArtifactError)
    return arrays


def _typed(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError("it is not an array; of a pickle of PyTorch, write safetensors first")
    if array.dtype.kind != "V":
        if array.dtype.kind not in "biufc":
            raise ValueError(f"it is of {array.dtype}, not of numbers")
        return array
    if array.dtype == np.dtype("V2"):
        return array.view(jnp.bfloat16)
    raise ValueError(
        f"NumPy kept of its dtype only {array.dtype}; write it as float32, or as safetensors"
    )


def read_orbax(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the leaves of an orbax step by path, unsharded and without a target.

    Args:
        path: a folder that orbax wrote, of one step or one item of a step. For a step of
            `Checkpoints`, packed parameters stay packed.

    Returns:
        Leaves by path, ready to be the source of `transfer.graft`. If a step has several items,
        paths start with their names: `params/dense/kernel`.

    Raises:
        ArtifactError: the folder does not exist or is damaged.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from nnopt_jax.interop import Checkpoints, read_orbax
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(3, {"dense": {"kernel": jnp.ones(2)}})
        ...     read_orbax(f"{folder}/3")
        {'dense/kernel': Array([1., 1.], dtype=float32)}
    """
    place = Path(path).absolute()
    who = f"read_orbax: {place}"
    if (place / "manifest").is_dir() and place.name.isdecimal():
        try:
            tree, _ = Checkpoints(place.parent).restore(step=int(place.name))
        except CheckpointError as error:
            raise ArtifactError(f"{who}: {error}") from error
        return flatten(tree, is_node)
    items = (
        {place.name: place}
        if (place / _TREE).is_file()
        else {found.parent.name: found.parent for found in sorted(place.glob(f"*/{_TREE}"))}
    )
    if not items:
        raise ArtifactError(f"{who}: {_why_not_a_step(place)}")
    trees = {name: flatten(_restore_item(item, who)) for name, item in items.items()}
    if len(trees) == 1:
        return next(iter(trees.values()))
    return {f"{name}/{path}": x for name, tree in trees.items() for path, x in tree.items()}


def _why_not_a_step(place: Path) -> str:
    """Return a sentence that says why a folder is not an orbax step."""
    if not place.is_dir():
        return "there is no such folder."
    steps = sorted(int(one.name) for one in place.iterdir() if one.name.isdecimal())
    if steps:
        return f"holds the steps {steps}; give one of them, {place / str(steps[-1])}."
    return f"is not an orbax step: no {_TREE} in it or in its folders."


def _restore_item(place: Path, who: str) -> Any:
    import orbax.checkpoint as ocp

    how = ocp.RestoreArgs(restore_type=np.ndarray)
    with (
        one_error(f"{who}: damaged or incomplete", ArtifactError),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
    ):
        held = reader.metadata(place).item_metadata
        args = jax.tree.map(lambda x: how, getattr(held, "tree", held))
        return reader.restore(place, args=ocp.args.PyTreeRestore(restore_args=args))
